//! Anonymous memory as a meter: read each second where the job's card prices it, else with the details, for the receipt.

use super::super::detail::DETAIL_AT_LEAST_EVERY;
use super::super::job::{Job, LevelMark};
use super::super::meter::{JobSample, Missing, Populated, Reading, area};
use super::super::time::Nanos;
use super::super::usage::Meter;
use super::draft::{Draft, is_gone};

/// What a look adds, and where the next one goes on from.
pub(super) struct Anon {
    /// Byte-nanoseconds.
    pub(super) byte_ns: u128,
    /// The level now.
    pub(super) mark: Option<LevelMark>,
}

impl Draft<'_> {
    /// The area of anonymous memory over the time that the job ran since the last reading; `ran_more_ns` of it since the last look.
    pub(super) fn anon(&self, job: &Job, sample: &JobSample, ran_more_ns: u128) -> Anon {
        let ran_ns = job.ran_ns() + ran_more_ns;
        let ended = is_gone(sample) || sample.populated.seen() == Some(&Populated::No);
        let since = |mark: LevelMark, now| {
            let length = Nanos(u64::try_from(ran_ns.saturating_sub(mark.ran_ns)).unwrap_or(u64::MAX));
            if self.anon_gap(job) < length { 0 } else { area(mark.bytes, now, length) }
        };
        match (&sample.memory_anon_bytes, job.memory_anon) {
            (Some(Reading::Seen(now)), before) if !ended => {
                let byte_ns = before.map_or(0, |mark| since(mark, Some(*now)));
                Anon { byte_ns, mark: Some(LevelMark { bytes: *now, ran_ns }) }
            }
            // The level holds to the end.
            (_, Some(mark)) if ended => Anon { byte_ns: since(mark, None), mark: Some(LevelMark { bytes: mark.bytes, ran_ns }) },
            // Nobody knows it from here to the next reading.
            (Some(Reading::Missing(_)), _) => Anon { byte_ns: 0, mark: None },
            (_, mark) => Anon { byte_ns: 0, mark },
        }
    }

    /// Why the anonymous memory of a running job is not known over the time since its last look, if its card prices it.
    pub(super) fn anon_missing(&self, job: &Job, sample: &JobSample) -> Option<Missing> {
        if !self.prices_anon(job) || !self.is_paid_for(job) {
            return None;
        }
        let ended = is_gone(sample) || sample.populated.seen() == Some(&Populated::No);
        let length = sample.at.since(job.counted_to);
        match (&sample.memory_anon_bytes, job.memory_anon) {
            (_, Some(_)) if self.anon_gap(job) < length => Some(Missing::AgentDown),
            (Some(Reading::Missing(why)), _) if !ended => Some(why.clone()),
            // The first reading of a job is a moment after its start; one that is missing stands in the gap before.
            (Some(Reading::Seen(_)), None) => {
                let last = job.gaps.iter().rev().find(|gap| gap.meter == Meter::MemoryAnon);
                (self.level_gap() < length || last.is_some()).then(|| last.map_or(Missing::NotYet, |gap| gap.why.clone()))
            }
            _ => None,
        }
    }

    /// Longer than this between two readings, and nobody knows what was in between.
    fn anon_gap(&self, job: &Job) -> Nanos {
        if self.prices_anon(job) { self.level_gap() } else { self.level_gap().max(Nanos(3 * DETAIL_AT_LEAST_EVERY.0)) }
    }

    fn prices_anon(&self, job: &Job) -> bool {
        let card = job.segments.last().and_then(|segment| self.agent.cards.get(&segment.card));
        card.is_some_and(|card| card.prices(Meter::MemoryAnon))
    }
}
