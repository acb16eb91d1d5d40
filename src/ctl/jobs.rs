//! `meterctl jobs`: the jobs that the caller may see.

use std::path::Path;

use serde::Deserialize;

use super::client::{Client, Failure};
use super::exit::Exit;
use super::quantity::{show_bytes, show_length, show_wide_length};
use super::table::{Align, table};
use super::{Format, print_as};
use crate::domain::gang::Want;
use crate::domain::job::{FrozenBy, Phase};
use crate::domain::time::Nanos;
use crate::domain::view::JobView;

/// Which jobs, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Those that have ended lately too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

/// `GET /v1/jobs`.
#[derive(Debug, Deserialize)]
pub(super) struct Jobs {
    jobs: Vec<JobView>,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    let document = Client::new(socket)?.read("/v1/jobs")?;
    let which = if arguments.all { Which::All } else { Which::Live };
    print_as(&document, arguments.format, |jobs: &Jobs| text(jobs, which))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    All,
    Live,
}

fn text(jobs: &Jobs, which: Which) -> String {
    let shown: Vec<&JobView> = jobs.jobs.iter().filter(|job| which == Which::All || job.phase != Phase::Ended).collect();
    if shown.is_empty() {
        return match which {
            Which::All => "no jobs\n".to_owned(),
            Which::Live => "no jobs that have not ended; --all shows those too\n".to_owned(),
        };
    }
    let headings = [
        ("JOB", Align::Left),
        ("ATTEMPT", Align::Right),
        ("ACCOUNT", Align::Left),
        ("UID", Align::Right),
        ("PHASE", Align::Left),
        ("RUNNING", Align::Right),
        ("FROZEN", Align::Right),
        ("CPU TIME", Align::Right),
        ("MEMORY", Align::Right),
        ("GPUS", Align::Right),
        ("CHARGE", Align::Right),
        ("UNFUNDED", Align::Right),
    ];
    table(&headings, &shown.into_iter().map(row).collect::<Vec<_>>())
}

fn row(job: &JobView) -> Vec<String> {
    let missing = if job.missing.is_empty() { "" } else { " (blind)" };
    vec![
        job.job.to_string(),
        job.attempt.to_string(),
        job.account.to_string(),
        job.owner_uid.0.to_string(),
        format!("{}{missing}", phase(job)),
        show_length(Nanos::from_millis(job.running_ms)),
        show_length(Nanos::from_millis(job.frozen_ms)),
        show_wide_length(job.cpu_ns),
        job.memory_bytes.map_or("?".to_owned(), show_bytes),
        job.gpus.len().to_string(),
        job.charge.to_string(),
        job.unfunded.to_string(),
    ]
}

fn phase(job: &JobView) -> String {
    let held = job.gang.as_ref().filter(|gang| gang.want == Want::Freeze);
    match (job.phase, job.frozen_by) {
        (Phase::Frozen, Some(FrozenBy::Agent)) if held.is_some() => {
            format!(
                "frozen with its gang{}",
                held.and_then(|gang| gang.dry.as_ref()).map_or(String::new(), |node| format!(": {node} ran dry"))
            )
        }
        (Phase::Frozen, Some(FrozenBy::Agent)) if job.outbid.is_some() => "frozen: bid too low".to_owned(),
        (Phase::Frozen, Some(FrozenBy::Agent)) => "frozen: no credit".to_owned(),
        (Phase::Frozen, _) => "frozen by another".to_owned(),
        (phase, _) => phase.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::view::GangView;
    use crate::node::sample;

    #[test]
    fn jobs_stand_in_columns() {
        let jobs = Jobs { jobs: sample::view().jobs };
        insta::assert_snapshot!(text(&jobs, Which::All));
    }

    #[test]
    fn a_part_of_a_gang_stands_still_for_the_sake_of_another_and_says_so() {
        let mut job = sample::view().jobs.into_iter().find(|job| job.phase == Phase::Frozen).unwrap();
        assert_eq!(phase(&job), "frozen: no credit");
        let gang = |want, dry: Option<&str>| GangView {
            name: "mpi-17".parse().unwrap(),
            attempt: 0,
            size: Some(2),
            want,
            version: 4,
            dry: dry.map(|node| node.parse().unwrap()),
        };
        let mut with = |gang| {
            job.gang = Some(gang);
            phase(&job)
        };
        assert_eq!(with(gang(Want::Freeze, Some("n2"))), "frozen with its gang: n2 ran dry");
        assert_eq!(with(gang(Want::Freeze, None)), "frozen with its gang");
        assert_eq!(with(gang(Want::Run, None)), "frozen: no credit");
    }

    #[test]
    fn ended_jobs_are_shown_on_request() {
        let jobs = Jobs { jobs: sample::view().jobs };
        assert!(!text(&jobs, Which::Live).contains("ended"));
        assert!(text(&Jobs { jobs: Vec::new() }, Which::Live).contains("--all"));
    }
}
