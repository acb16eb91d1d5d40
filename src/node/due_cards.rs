//! Rate cards on their way into force: those that wait for their date, and the alarm about one that was refused.

use super::alarm::{Alarm, Alarms};
use super::clock;
use crate::domain::rates::Card;
use crate::domain::time::{Mono, Nanos, Now, Wall};
use crate::domain::turn::Turn;

/// Cards that wait for their date.
#[derive(Default)]
pub(super) struct DueCards(Vec<Card>);

impl DueCards {
    pub(super) fn put(&mut self, card: Card) {
        self.0.push(card);
    }

    /// When the next one is due.
    pub(super) fn next(&self, now: Now) -> Option<Mono> {
        let date = self.0.iter().map(|card| card.effective_from).min()?;
        Some(now.mono.plus(Nanos::from_millis(date.0.saturating_sub(now.wall.0))))
    }

    /// Those whose date has come, the oldest first.
    pub(super) fn due(&mut self, wall: Wall) -> Vec<Card> {
        let (mut due, later): (Vec<Card>, Vec<Card>) =
            std::mem::take(&mut self.0).into_iter().partition(|card| card.effective_from <= wall);
        self.0 = later;
        due.sort_by_key(|card| (card.effective_from, card.version));
        due
    }
}

/// Says so if the newest card was refused, and no longer once another is in force.
pub(super) fn tell(alarms: &mut Alarms, turn: &Turn) {
    match turn.refused_card() {
        Some(why) => {
            tracing::error!(event = "card_refused", %why, "the last good card stays in force");
            alarms.raise(Alarm::CardRefused, clock::now(), why);
        }
        None => alarms.clear(Alarm::CardRefused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(version: u64, from: &str) -> Card {
        let line = "[[line]]\nid = \"c\"\nmeter = \"cpu_time\"\nprice = \"1\"\nunit = \"core-hour\"\n";
        Card::parse(&format!("card = \"c\"\nversion = {version}\neffective_from = \"{from}\"\n{line}"), "c.toml").unwrap()
    }

    #[test]
    fn a_card_waits_for_its_date_and_the_older_one_comes_first() {
        let mut cards = DueCards::default();
        for (version, from) in [(3, "1970-01-01T00:00:02Z"), (2, "1970-01-01T00:00:01Z"), (4, "1970-01-01T00:00:02.001Z")] {
            cards.put(card(version, from));
        }
        let versions = |cards: Vec<Card>| cards.iter().map(|card| card.version).collect::<Vec<u64>>();
        let now = |wall_ms: u64| Now { mono: Mono(5), wall: Wall(wall_ms), ..Now::default() };
        assert_eq!(cards.next(now(999)), Some(Mono(1_000_005)), "in a millisecond");
        assert_eq!(cards.next(now(1_500)), Some(Mono(5)), "it is due");
        assert_eq!(versions(cards.due(Wall(999))), [0_u64; 0]);
        assert_eq!(versions(cards.due(Wall(2_000))), [2, 3]);
        assert_eq!(versions(cards.due(Wall(2_001))), [4]);
        assert_eq!(cards.next(now(0)), None);
    }
}
