//! The thread that tells an engine of use and asks it for balances. What it hears goes to the store as any other act, between the nodes' questions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Failure;
use super::http::Http;
use super::pace::{Asking, Telling};
use super::status::EngineStatus;
use crate::authority::embedded::{Change, Door};
use crate::authority::store::mirror::{Followed, Outcome, UsageEvent};
use crate::authority::store::{Refusal, Store};
use crate::domain::id::AccountId;
use crate::domain::mirror::Reading;
use crate::domain::time::{Mono, Nanos, Now};
use crate::node::random::stray;

/// Questions at once.
const QUESTIONS_MAX: usize = 8;
/// Between two looks for accounts that were made since.
const ENROL_EVERY: Nanos = Nanos::from_secs(1);
/// Between two tries with what was refused.
const REFUSED_EVERY: Nanos = Nanos::from_secs(600);
/// No sleep is longer: what is due may change meanwhile.
const SLEEP_MAX: Nanos = Nanos::from_secs(1);
/// Where the store does not do it.
const STORE_AGAIN: Nanos = Nanos::from_secs(1);

/// The thread, running. It ends when this is dropped.
pub struct Running {
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    status: Arc<EngineStatus>,
}

impl Running {
    /// How it gets on.
    #[must_use]
    pub fn status(&self) -> Arc<EngineStatus> {
        Arc::clone(&self.status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(event = "engine_panicked");
        }
    }
}

/// What both halves share.
struct Shared {
    http: Http,
    door: Door,
    clock: fn() -> Now,
    status: Arc<EngineStatus>,
    asking: Mutex<Asking>,
    /// How many accounts there were then.
    enrolled_of: AtomicU64,
}

/// Starts the thread.
///
/// # Errors
/// When there can be none.
pub fn start(http: Http, door: Door, clock: fn() -> Now) -> std::io::Result<Running> {
    let config = http.config();
    let status = Arc::new(EngineStatus::new(config.kind, &config.url));
    let asking = Mutex::new(Asking::new(config.poll, clock().mono));
    let shared = Arc::new(Shared { http, door, clock, status: Arc::clone(&status), asking, enrolled_of: AtomicU64::new(u64::MAX) });
    let (end, mut ending) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = tell(&shared) => {}
                () = ask(&shared) => {}
                _ = ending.wait_for(|end| *end) => {}
            }
        });
        runtime.shutdown_timeout(Duration::ZERO);
    })?;
    Ok(Running { end, thread: Some(thread), status })
}

impl Shared {
    fn now(&self) -> Mono {
        (self.clock)().mono
    }

    fn asking(&self) -> std::sync::MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the store do something that pushes nothing.
    fn act<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Store, Now) -> Result<T, crate::authority::store::StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.door.act(move |store, now| Ok((act(store, now)?, Vec::new())))
    }

    fn enrol(&self) -> Result<(), Refusal> {
        let count = self.act(|store, _| store.count())?;
        if self.enrolled_of.load(Ordering::Relaxed) == count {
            return Ok(());
        }
        let config = self.http.config().clone();
        let (accounts, cannot) = self.act(move |store, now| store.enrol(Some(config.mirroring), |id| config.keeps(id), now))?;
        self.asking().of(&accounts, self.now());
        self.status.cannot(cannot);
        self.enrolled_of.store(count, Ordering::Relaxed);
        Ok(())
    }

    fn events(&self, most: usize) -> Result<Vec<UsageEvent>, Refusal> {
        let config = self.http.config().clone();
        self.act(move |store, now| {
            store.put_into_events(|draft| config.kind.event(&config, draft), now)?;
            store.events_to_send(most, now)
        })
    }

    fn followed(&self, account: &AccountId, reading: Reading) -> Result<Followed, Refusal> {
        let account = account.clone();
        self.door.act(move |store, now| {
            let followed = store.follow(&account, &reading, now)?;
            let pushes = match &followed {
                Followed::Moved(push) => vec![(push.clone(), Change::Mirrored)],
                _ => Vec::new(),
            };
            Ok((followed, pushes))
        })
    }

    fn show(&self) {
        match self.act(Store::mirrored) {
            Ok(view) => self.status.stands(view),
            Err(refusal) => tracing::debug!(event = "engine_unseen", %refusal),
        }
    }
}

async fn sleep_until(shared: &Shared, due: Mono) {
    let pause = due.since(shared.now()).min(SLEEP_MAX);
    tokio::time::sleep(Duration::from_nanos(pause.0.max(1_000_000))).await;
}

/// Tells of use, for ever; and looks after accounts.
async fn tell(shared: &Shared) {
    let config = shared.http.config();
    let mut telling = Telling::new(config.mirroring.event_every, config.kind.events_max(), shared.now());
    let (mut enrol, mut refused) = (shared.now(), shared.now());
    loop {
        let now = shared.now();
        let done = if enrol <= now {
            shared.enrol().map(|()| enrol = now.plus(ENROL_EVERY))
        } else if refused <= now {
            shared.act(|store, _| store.try_refused_again()).map(|_| refused = now.plus(REFUSED_EVERY))
        } else if telling.due() <= now {
            tell_once(shared, &mut telling).await
        } else {
            sleep_until(shared, telling.due().min(enrol).min(refused)).await;
            Ok(())
        };
        if let Err(refusal) = done {
            tracing::debug!(event = "engine_store", %refusal, "the store does not do it now");
            sleep_until(shared, shared.now().plus(STORE_AGAIN)).await;
        }
    }
}

async fn tell_once(shared: &Shared, telling: &mut Telling) -> Result<(), Refusal> {
    let events = shared.events(telling.most())?;
    if events.is_empty() {
        telling.told(0, shared.now());
        shared.show();
        return Ok(());
    }
    match shared.http.tell(&events).await {
        Ok(outcomes) => {
            let count = events.len();
            let told: Vec<(String, Outcome)> = events.into_iter().map(|event| event.draft.id).zip(outcomes).collect();
            for (id, outcome) in &told {
                if let Outcome::Refused { code, why } = outcome {
                    tracing::warn!(event = "usage_event_refused", %id, code, %why, "it is tried again later");
                }
            }
            let (taken, refused) = shared.act(move |store, now| store.events_told(&told, now))?;
            shared.status.told(taken, refused);
            telling.told(count, shared.now());
        }
        Err(failure) => {
            if shared.status.not_told(&failure, (shared.clock)()) {
                tracing::warn!(event = "engine_not_told", code = failure.code, why = %failure.message, "it is told again");
            }
            telling.failed(&failure, shared.now(), stray);
        }
    }
    shared.show();
    Ok(())
}

/// Asks for balances, for ever.
async fn ask(shared: &Arc<Shared>) {
    loop {
        let next = shared.asking().next(QUESTIONS_MAX, shared.now());
        if next.is_empty() {
            let due = shared.asking().due().unwrap_or(Mono(u64::MAX));
            sleep_until(shared, due).await;
            continue;
        }
        let mut questions = JoinSet::new();
        for account in next {
            let shared = Arc::clone(shared);
            questions.spawn(async move { ask_once(&shared, &account).await });
        }
        while questions.join_next().await.is_some() {}
    }
}

async fn ask_once(shared: &Shared, account: &AccountId) {
    let asked = (shared.clock)();
    let said = shared.http.ask(account).await;
    let followed = said.and_then(|said| {
        let reading = Reading { balance: said.balance, asked: asked.mono, asked_wall: asked.wall, as_of: said.as_of };
        match shared.followed(account, reading) {
            Ok(Followed::Moved(_)) => Ok(true),
            Ok(Followed::Same | Followed::NotMirrored) => Ok(false),
            Ok(Followed::Older) => Err(Failure::of_account("older_balance", "the engine says a balance that is older than one before")),
            Ok(Followed::TooLarge) => Err(Failure::of_account("too_large", "the engine says more than an account can hold")),
            Err(refusal) => Err(Failure::of_account("store", refusal.to_string())),
        }
    });
    match followed {
        Ok(moved) => {
            shared.status.answered(account, moved);
            shared.asking().answered(account, shared.now(), stray);
        }
        Err(failure) => {
            if shared.status.not_answered(account, &failure, (shared.clock)()) {
                tracing::warn!(event = "engine_no_balance", %account, code = failure.code, why = %failure.message, "what is held stays good");
            }
            shared.asking().failed(account, &failure, shared.now(), stray);
        }
    }
}
