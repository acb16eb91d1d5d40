//! The last step of the line: the picture that everybody looks at. One is hung up at each tick, and between two ticks when something was
//! answered or done; but never so often that it takes more than a twentieth of the loop's time.

use std::sync::Arc;

use super::clock;
use super::gpu::Gpus;
use super::handle::{Board, Picture, Stats};
use crate::domain::id::Digest;
use crate::domain::time::{Mono, Nanos};
use crate::domain::turn::Turn;
use crate::domain::view::{JobView, View};

/// Of the loop's time, publishing between two ticks may take one part in so many.
const SHARE: u64 = 20;

/// Where pictures are made.
pub struct Publisher {
    board: Arc<Board>,
    /// An old picture's jobs that nobody looks at any more: the next one is made over them.
    spare: Vec<JobView>,
    /// When the newest was hung up, and how long it took.
    last: (Mono, Nanos),
    owed: Owed,
    /// The card that the board shows.
    card: Option<Digest>,
}

/// Has somebody been answered whose deed the newest picture does not show?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    Picture,
}

impl Publisher {
    /// A maker of pictures for a board.
    #[must_use]
    pub fn new(board: Arc<Board>) -> Publisher {
        Publisher { board, spare: Vec::new(), last: (Mono(0), Nanos(0)), owed: Owed::Nothing, card: None }
    }

    /// From when on another picture is cheap enough.
    fn cheap_from(&self) -> Mono {
        self.last.0.plus(Nanos(self.last.1.0.saturating_mul(SHARE)))
    }

    /// Hangs up a picture now, if that is cheap.
    pub fn publish_if_cheap(&mut self, turn: &Turn, gpus: Option<&Gpus>, stats: &Stats) {
        if self.cheap_from() <= clock::mono() {
            self.publish(turn, gpus, stats);
        }
    }

    /// Somebody is about to be answered: whoever looks from now on waits for a picture that shows it, at most until it is [`Self::due`].
    pub fn owe(&mut self, turn: &Turn, gpus: Option<&Gpus>, stats: &Stats) {
        if self.cheap_from() <= clock::mono() {
            self.publish(turn, gpus, stats);
        } else {
            self.owed = Owed::Picture;
            self.board.fall_behind();
        }
    }

    /// When a picture that is owed is to be made.
    #[must_use]
    pub fn due(&self) -> Option<Mono> {
        (self.owed == Owed::Picture).then(|| self.cheap_from())
    }

    fn show_card(&mut self, turn: &Turn) {
        let in_force = turn.agent().card_in_force();
        if let Some(card) = in_force.filter(|card| self.card != Some(card.digest)) {
            self.card = Some(card.digest);
            self.board.show_card(Arc::new(card.clone()));
        }
    }

    /// Hangs up a picture now.
    pub fn publish(&mut self, turn: &Turn, gpus: Option<&Gpus>, stats: &Stats) {
        let now = clock::now();
        self.show_card(turn);
        let spare = std::mem::take(&mut self.spare);
        let mut view = View::over(spare, turn.agent(), turn.settings(), turn.durable().0, turn.refused_card(), now);
        for account in &mut view.accounts {
            account.balance = turn.balance(&account.account).cloned();
        }
        let before = self.board.hang(Picture {
            view: Some(view),
            taken_at_ns: now.mono.0,
            gpus: gpus.map(|gpus| gpus.latest(now.mono)),
            host: turn.settings().host,
            stats: stats.clone(),
        });
        self.spare = Arc::into_inner(before).and_then(|picture| picture.view).map(|view| view.jobs).unwrap_or_default();
        let done = clock::mono();
        self.last = (done, done.since(now.mono));
        self.owed = Owed::Nothing;
    }
}
