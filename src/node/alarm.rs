//! The agent's states that somebody should know of. Each has a name, which is the same in `status`, in the metrics and in the log, and
//! something to do about it.
//!
//! A state *holds* until it is cleared, or it is something that *happened* and is shown for an hour.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::receipt::rfc3339;
use crate::domain::time::{Mono, Nanos, Now, Wall};

/// For how long something that happened is shown.
const SHOWN_FOR: Nanos = Nanos::from_secs(3_600);

/// One state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The disk under the journal is full.
    JournalFull,
    /// The disk under the journal may not be written to.
    JournalReadOnly,
    /// The disk under the authority's file takes nothing.
    AuthorityFull,
    /// The authority on the network gives no answers that can be used.
    AuthorityFault,
    /// The kernel gives no more descriptors, or soon will not.
    FewDescriptors,
    /// Tasks run in a cgroup of a job that nobody told the agent of.
    Unmetered,
    /// More accounts are to be stopped than a window of time allows.
    HeldBack,
    /// The last process ended since its journal or authority failed.
    JournalFailed,
    /// The last process ended without having been asked to.
    Crashed,
    /// Several did, shortly after one another.
    CrashLoop,
    /// The machine was booted since the last process ended.
    Rebooted,
    /// The last process was of another version.
    Upgraded,
    /// The loop stood still: the process was stopped, or got no CPU.
    Stalled,
    /// The machine slept.
    Suspended,
    /// The wall clock was set.
    ClockStepped,
    /// A damaged journal was set aside, and nobody has fetched it yet.
    JournalSetAside,
    /// The agent itself costs more than its budget.
    OverBudget,
    /// A card that was to come into force was refused: the last good one goes on.
    CardRefused,
    /// The last process stood still, and the watchdog ended it.
    Watchdog,
}

/// Does a state hold, or did it happen?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Holds,
    Happened,
}

impl Alarm {
    /// Every one.
    pub const ALL: [Alarm; 19] = [
        Alarm::JournalFull,
        Alarm::JournalReadOnly,
        Alarm::AuthorityFull,
        Alarm::AuthorityFault,
        Alarm::FewDescriptors,
        Alarm::Unmetered,
        Alarm::HeldBack,
        Alarm::JournalFailed,
        Alarm::Crashed,
        Alarm::CrashLoop,
        Alarm::Rebooted,
        Alarm::Upgraded,
        Alarm::Stalled,
        Alarm::Suspended,
        Alarm::ClockStepped,
        Alarm::JournalSetAside,
        Alarm::OverBudget,
        Alarm::CardRefused,
        Alarm::Watchdog,
    ];

    /// Its stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Alarm::JournalFull => "journal_full",
            Alarm::JournalReadOnly => "journal_read_only",
            Alarm::AuthorityFull => "authority_full",
            Alarm::AuthorityFault => "authority_fault",
            Alarm::FewDescriptors => "few_descriptors",
            Alarm::Unmetered => "unmetered",
            Alarm::HeldBack => "held_back",
            Alarm::JournalFailed => "journal_failed",
            Alarm::Crashed => "crashed",
            Alarm::CrashLoop => "crash_loop",
            Alarm::Rebooted => "rebooted",
            Alarm::Upgraded => "upgraded",
            Alarm::Stalled => "stalled",
            Alarm::Suspended => "suspended",
            Alarm::ClockStepped => "clock_stepped",
            Alarm::JournalSetAside => "journal_set_aside",
            Alarm::OverBudget => "over_budget",
            Alarm::CardRefused => "card_refused",
            Alarm::Watchdog => "watchdog",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Alarm::JournalFull | Alarm::AuthorityFull => "make room on the disk of state_dir; the agent goes on by itself",
            Alarm::JournalReadOnly => {
                "find out why the disk of state_dir is read-only (dmesg), and make it writable; the agent goes on by itself"
            }
            Alarm::AuthorityFault => {
                "meterctl status names the fault; look at the network, the certificates and meter-authority; the agent goes on asking by itself"
            }
            Alarm::FewDescriptors => "raise LimitNOFILE= of the unit, or end what holds descriptors; jobs that are metered are metered on",
            Alarm::Unmetered => "meterctl status names the places; start those jobs, or end them",
            Alarm::HeldBack => {
                "find out why so many accounts are empty at once; if it is right: meterctl enforcement confirm; if not: meterctl enforcement off"
            }
            Alarm::JournalFailed => "look at the disk (dmesg, smartctl), then meterctl journal verify",
            Alarm::Crashed => "journalctl -u meterd tells more; where it was for lack of memory, MemoryMax= is too small",
            Alarm::CrashLoop => {
                "journalctl -u meterd; jobs run on and are not lost, frozen ones stay frozen: meterctl thaw --all lets them go"
            }
            Alarm::Rebooted | Alarm::Upgraded => "nothing, if it was meant",
            Alarm::Stalled => {
                "look for who stopped the process or took its CPU; counters have lost nothing, memory was not billed meanwhile"
            }
            Alarm::Suspended => "nothing: what slept is not billed, grants have aged",
            Alarm::JournalSetAside => {
                "find out why (dmesg, smartctl), compare receipts and ledger with what is there, then move the folder elsewhere"
            }
            Alarm::OverBudget => "find out why (meterctl top: how many jobs?), or raise [budget]; levels are known more coarsely meanwhile",
            Alarm::CardRefused => {
                "meterctl rate check FILE --key KEY names what is wrong; mend or sign the card, raise its version, and reload"
            }
            Alarm::Watchdog => {
                "find out who stopped the process (SIGSTOP, a debugger) or what it waited for (dmesg); counters have lost nothing, memory was not billed meanwhile"
            }
            Alarm::ClockStepped => {
                "set it right if it is wrong: dates of cards, lines and credit, and all times that are written, follow it once it has stood for ten minutes"
            }
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Alarm::JournalFull
            | Alarm::JournalReadOnly
            | Alarm::AuthorityFull
            | Alarm::AuthorityFault
            | Alarm::FewDescriptors
            | Alarm::Unmetered
            | Alarm::HeldBack
            | Alarm::JournalSetAside
            | Alarm::OverBudget
            | Alarm::CardRefused => Kind::Holds,
            _ => Kind::Happened,
        }
    }
}

/// One state as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmView {
    /// Its stable name.
    pub code: String,
    /// RFC 3339: since when it holds, or when it last happened.
    pub at: String,
    /// What is the matter, in a sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

#[derive(Clone, Debug)]
struct Raised {
    at: Mono,
    wall: Wall,
    message: String,
}

/// The states that hold or were shortly, and how often each has come since the process began.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    raised: BTreeMap<Alarm, Raised>,
    counts: BTreeMap<Alarm, u64>,
}

impl Alarms {
    /// It holds from now on, or it happened now. What holds already is not said again.
    pub fn raise(&mut self, alarm: Alarm, now: Now, message: impl Into<String>) {
        let message = message.into();
        if alarm.kind() == Kind::Holds
            && let Some(raised) = self.raised.get_mut(&alarm)
        {
            raised.message = message;
            return;
        }
        tracing::warn!(event = "alarm", alarm = alarm.name(), %message, hint = alarm.hint());
        *self.counts.entry(alarm).or_default() += 1;
        self.raised.insert(alarm, Raised { at: now.mono, wall: now.wall, message });
    }

    /// It does not hold any more.
    pub fn clear(&mut self, alarm: Alarm) {
        if self.raised.remove(&alarm).is_some() {
            tracing::info!(event = "alarm_over", alarm = alarm.name());
        }
    }

    /// What happened long ago is not shown any more.
    pub fn forget_old(&mut self, now: Mono) {
        self.raised.retain(|alarm, raised| alarm.kind() == Kind::Holds || now.since(raised.at) < SHOWN_FOR);
    }

    /// Is it raised?
    #[must_use]
    pub fn holds(&self, alarm: Alarm) -> bool {
        self.raised.contains_key(&alarm)
    }

    /// How often it has come since the process began.
    #[must_use]
    pub fn count(&self, alarm: Alarm) -> u64 {
        self.counts.get(&alarm).copied().unwrap_or(0)
    }

    /// All that are raised, for people.
    #[must_use]
    pub fn views(&self) -> Vec<AlarmView> {
        let view = |(alarm, raised): (&Alarm, &Raised)| AlarmView {
            code: alarm.name().to_owned(),
            at: rfc3339(raised.wall),
            message: raised.message.clone(),
            hint: alarm.hint().to_owned(),
        };
        self.raised.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Now {
        Now { mono: Mono(secs * 1_000_000_000), ..Now::default() }
    }

    #[test]
    fn what_holds_is_shown_until_it_is_cleared_and_said_once() {
        let mut alarms = Alarms::default();
        alarms.raise(Alarm::JournalFull, at(1), "full");
        alarms.raise(Alarm::JournalFull, at(2), "still full");
        alarms.forget_old(at(1_000_000).mono);
        assert_eq!((alarms.count(Alarm::JournalFull), alarms.views()[0].message.as_str()), (1, "still full"));
        alarms.clear(Alarm::JournalFull);
        assert!(alarms.views().is_empty() && !alarms.holds(Alarm::JournalFull));
    }

    #[test]
    fn what_happened_is_shown_for_an_hour_and_counted_each_time() {
        let mut alarms = Alarms::default();
        alarms.raise(Alarm::Stalled, at(1), "for 3 s");
        alarms.raise(Alarm::Stalled, at(2), "for 4 s");
        alarms.forget_old(at(3_601).mono);
        assert!(alarms.holds(Alarm::Stalled));
        alarms.forget_old(at(3_602).mono);
        assert!(!alarms.holds(Alarm::Stalled));
        assert_eq!(alarms.count(Alarm::Stalled), 2);
    }

    #[test]
    fn every_state_has_a_name_of_its_own_in_the_operators_guide() {
        let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operator.md")).unwrap();
        let names: std::collections::BTreeSet<&str> = Alarm::ALL.into_iter().map(Alarm::name).collect();
        assert_eq!(names.len(), Alarm::ALL.len());
        for name in names {
            assert!(guide.contains(&format!("| `{name}` |")), "{name} is not in docs/operator.md");
        }
    }
}
