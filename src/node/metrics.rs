//! The metrics, as one table, built from the picture at each scrape, as `OpenMetrics` 1.0 or classic Prometheus text.
//!
//! Names begin with `meterd_`, units are base units, and no label holds a job. Only operators, on the socket, see accounts.

mod format;

use std::fmt::{Debug, Error};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::alarm::{Alarm, Alarms};
use super::handle::Picture;
use super::link::{LinkStatus, Stream};
use super::status::{accounts_by_state, jobs_by_phase, state_name};
use crate::domain::budget::Over;
use crate::domain::correction::Corrections;
use crate::domain::enforcement::Enforcement;
use crate::domain::gang::Want;
use crate::domain::id::{AccountId, GpuId};
use crate::domain::job::Phase;
use crate::domain::meter::Reading;
use crate::domain::money::Credits;
use crate::domain::time::{Mono, Nanos};
use crate::domain::view::View;
use crate::domain::wire::Balance;

pub use format::Format;

/// Are series of single accounts given?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// For operators.
    PerAccount,
    /// For everybody.
    Aggregate,
}

/// What is exposed: name (without `meterd_`; counters get their `_total` from the encoder), type and help.
const TABLE: &[(&str, MetricType, &str, Rows)] = &[
    ("build", MetricType::Info, "This program.", build),
    ("picture_age_seconds", MetricType::Gauge, "Since the last tick was published.", |scrape| one(seconds(scrape.age))),
    ("card", MetricType::Info, "The rate card in force.", card),
    ("enforcement_mode", MetricType::Gauge, "1 for the mode in force.", mode),
    ("jobs", MetricType::Gauge, "Jobs at hand, by phase.", jobs),
    ("gang_parts", MetricType::Gauge, "Live jobs that are parts of gangs, by what these are to do.", gang_parts),
    ("accounts", MetricType::Gauge, "Accounts in this epoch, by state.", accounts),
    ("drawn_credits", MetricType::Counter, "Charged to grants on this node in this epoch.", drawn),
    ("unfunded_credits", MetricType::Counter, "Used past zero and written off in this epoch.", unfunded),
    ("owed_credits", MetricType::Gauge, "Used, and neither drawn nor written off yet.", owed),
    ("ticks", MetricType::Counter, "Ticks of the loop.", |scrape| one(whole(scrape.picture.stats.tick_count))),
    ("ticks_missed", MetricType::Counter, "Ticks left out since the loop was late.", |scrape| {
        one(whole(scrape.picture.stats.tick_missed_count))
    }),
    ("tick_duration_seconds", MetricType::Gauge, "The last tick, from its beginning to its publication.", |scrape| {
        one(seconds(Nanos(scrape.picture.stats.tick_ns)))
    }),
    ("tick_lateness_seconds", MetricType::Gauge, "How late the last tick began.", |scrape| {
        one(seconds(Nanos(scrape.picture.stats.tick_late_ns)))
    }),
    ("tick_lateness_max_seconds", MetricType::Gauge, "How late the latest tick began since the start.", |scrape| {
        one(seconds(Nanos(scrape.picture.stats.tick_late_max_ns)))
    }),
    (
        "tick_interval_seconds",
        MetricType::Gauge,
        "Between two ticks; wider than configured while the agent is over its budget.",
        |scrape| one(seconds(Nanos(scrape.picture.stats.interval_ns))),
    ),
    ("over_budget", MetricType::Gauge, "1 while the interval is widened for what the agent costs too much of.", over_budget),
    ("tick_interval_widened", MetricType::Counter, "How often the agent widened its interval.", |scrape| {
        one(whole(scrape.picture.stats.widened_count))
    }),
    ("journal_commits", MetricType::Counter, "Batches of facts handed to the journal.", |scrape| {
        one(whole(scrape.picture.stats.commit_count))
    }),
    ("journal_bytes", MetricType::Counter, "Bytes of facts handed to the journal.", |scrape| one(whole(scrape.picture.stats.commit_bytes))),
    ("journal_facts", MetricType::Counter, "Facts made since the journal began.", |scrape| scrape.of_view(|view| whole(view.seq))),
    ("journal_lag_facts", MetricType::Gauge, "Facts made and not on disk yet.", |scrape| {
        scrape.of_view(|view| whole(view.seq.saturating_sub(view.durable_seq)))
    }),
    ("journal_full", MetricType::Gauge, "1 while the journal's disk takes nothing.", |scrape| {
        one(whole(u64::from(scrape.picture.stats.journal_full)))
    }),
    ("alarm", MetricType::Gauge, "1 for each state that somebody should know of.", |scrape| {
        of_alarms(scrape, |alarms, alarm| u64::from(alarms.holds(alarm)))
    }),
    ("alarms", MetricType::Counter, "How often each of them came since the agent began.", |scrape| of_alarms(scrape, Alarms::count)),
    ("corrections", MetricType::Counter, "What was not as the agent believed, by kind.", corrections),
    ("authority_questions", MetricType::Counter, "Questions sent to the authority, repeats included.", |scrape| {
        one(whole(scrape.picture.stats.asked_count))
    }),
    ("authority_unanswered", MetricType::Gauge, "1 while a question waits for its answer.", |scrape| {
        scrape.of_view(|view| whole(u64::from(view.authority_unanswered.is_some())))
    }),
    ("authority_answers", MetricType::Counter, "Answers taken from an authority over the network.", |scrape| {
        of_link(scrape, |link| Value::Whole(link.answers))
    }),
    ("authority_pushes", MetricType::Counter, "Changes that the authority told of unasked.", |scrape| {
        of_link(scrape, |link| Value::Whole(link.pushes))
    }),
    ("authority_stream_open", MetricType::Gauge, "1 while the authority's stream of events is open.", |scrape| {
        of_link(scrape, |link| Value::Whole(u64::from(link.stream == Stream::Open)))
    }),
    ("authority_faults", MetricType::Counter, "What came of questions and was no answer, by code.", faults),
    ("acts", MetricType::Counter, "What the hands were ordered to do, by act and outcome.", acts),
    ("readings_missing", MetricType::Counter, "Readings that nobody could make, by reason.", missing),
    ("gpus", MetricType::Gauge, "GPUs that answer.", gpus),
    ("gpu_busy_ratio", MetricType::Gauge, "Mean utilisation since the last look.", gpu_busy),
    ("gpu_memory_used_bytes", MetricType::Gauge, "Device memory in use.", gpu_memory),
    ("process_cpu_seconds", MetricType::Counter, "CPU time of the agent.", |scrape| one(seconds(Nanos(scrape.picture.stats.cpu_ns)))),
    ("thread_cpu_seconds", MetricType::Counter, "CPU time by thread, read every ten ticks.", threads),
    ("process_open_fds", MetricType::Gauge, "Open descriptors, read every ten ticks.", |scrape| {
        one(whole(scrape.picture.stats.descriptors))
    }),
    ("process_resident_memory_bytes", MetricType::Gauge, "Resident memory of the agent.", |scrape| {
        one(whole(scrape.picture.stats.resident_bytes))
    }),
    ("account_in_hand_credits", MetricType::Gauge, "What the account may still spend here.", account_in_hand),
    ("account_free_credits", MetricType::Gauge, "Free credit of the account, held by nodes or not.", account_free),
    ("account_paid_credits", MetricType::Gauge, "Paid credit of the account, held by nodes or not.", account_paid),
    ("account_committed_credits", MetricType::Gauge, "Committed credit of the account, held by nodes or not.", account_committed),
    ("account_refill_pending_credits", MetricType::Gauge, "A refill that was asked for and has not come.", account_refill),
    ("account_alerts", MetricType::Gauge, "Alerts on the account's balance that hold.", account_alerts),
    ("account_drawn_credits", MetricType::Counter, "Charged to the account here in this epoch.", account_drawn),
    ("account_unfunded_credits", MetricType::Counter, "Used by the account past zero in this epoch.", account_unfunded),
    ("account_burn_credits_per_hour", MetricType::Gauge, "Measured over the last seconds.", account_burn),
    ("account_state", MetricType::Gauge, "1 for the state that the account is in.", account_state),
];

fn link(scrape: &Scrape) -> Option<LinkStatus> {
    Some(scrape.picture.stats.link.as_ref()?.status(Mono(scrape.picture.taken_at_ns)))
}

fn of_link(scrape: &Scrape, value: impl Fn(&LinkStatus) -> Value) -> Vec<Row> {
    link(scrape).iter().map(|link| (Vec::new(), value(link))).collect()
}

fn faults(scrape: &Scrape) -> Vec<Row> {
    let faults = link(scrape).map(|link| link.faults).unwrap_or_default();
    faults.into_iter().map(|(code, count)| (vec![("code", code)], Value::Whole(count))).collect()
}

fn corrections(scrape: &Scrape) -> Vec<Row> {
    scrape.picture.view.as_ref().map_or_else(Vec::new, |view| {
        let Corrections { missed_start, missed_stop, drift } = view.corrections;
        let row = |(kind, count): (&str, u64)| (vec![("kind", kind.to_owned())], Value::Whole(count));
        [("missed_start", missed_start), ("missed_stop", missed_stop), ("drift", drift)].map(row).to_vec()
    })
}

/// One row for each state.
fn of_alarms(scrape: &Scrape, value: fn(&Alarms, Alarm) -> u64) -> Vec<Row> {
    let row = |alarm: Alarm| (vec![("alarm", alarm.name().to_owned())], Value::Whole(value(&scrape.picture.stats.alarms, alarm)));
    Alarm::ALL.into_iter().map(row).collect()
}

type Rows = fn(&Scrape) -> Vec<Row>;
type Row = (Vec<(&'static str, String)>, Value);

/// A value as the encoder takes it.
#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(u64),
    Real(f64),
}

/// One scrape's input.
struct Scrape {
    picture: Arc<Picture>,
    age: Nanos,
    detail: Detail,
}

impl Debug for Scrape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape").field("age", &self.age).field("detail", &self.detail).finish_non_exhaustive()
    }
}

/// The whole text.
#[must_use]
pub fn text(picture: Arc<Picture>, now: Mono, detail: Detail, format: Format) -> String {
    let age = now.since(Mono(picture.taken_at_ns));
    let scrape = Scrape { picture, age, detail };
    match format {
        Format::OpenMetrics => open_metrics(scrape),
        Format::Classic => classic(&scrape),
    }
}

/// In the classic text a counter's family is called as its samples are, and there is no type `info`.
fn classic(scrape: &Scrape) -> String {
    let mut text = format::ClassicText::default();
    for (name, kind, help, rows) in TABLE {
        let rows = rows(scrape);
        let (suffix, kind) = match kind {
            MetricType::Counter => ("_total", "counter"),
            MetricType::Info => ("_info", "gauge"),
            _ => ("", "gauge"),
        };
        let name = format!("meterd_{name}{suffix}");
        if !rows.is_empty() {
            text.family(&name, kind, help);
        }
        for (labels, value) in rows {
            text.sample(&name, &labels, value);
        }
    }
    text.finish()
}

fn open_metrics(scrape: Scrape) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    // Writing into memory fails only if a collector does, and this one has nothing that could.
    if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
        text.clear();
    }
    text
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        for (name, kind, help, rows) in TABLE {
            let rows = rows(self);
            if rows.is_empty() {
                continue; // nothing known: a series that is absent is never read as zero
            }
            let name = format!("meterd_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, *kind)?;
            for (labels, value) in rows {
                encode_row(&mut metric, *kind, &labels, value)?;
            }
        }
        Ok(())
    }
}

fn encode_row(metric: &mut MetricEncoder, kind: MetricType, labels: &[(&'static str, String)], value: Value) -> Result<(), Error> {
    if matches!(kind, MetricType::Info) {
        return metric.encode_info(&labels);
    }
    if labels.is_empty() {
        return encode_value(metric, kind, value);
    }
    encode_value(&mut metric.encode_family(&labels)?, kind, value)
}

fn encode_value(metric: &mut MetricEncoder, kind: MetricType, value: Value) -> Result<(), Error> {
    match (kind, value) {
        (MetricType::Counter, Value::Whole(value)) => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (MetricType::Counter, Value::Real(value)) => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
        (_, Value::Whole(value)) => metric.encode_gauge(&value),
        (_, Value::Real(value)) => metric.encode_gauge(&value),
    }
}

impl Scrape {
    fn of_view(&self, value: impl Fn(&View) -> Value) -> Vec<Row> {
        self.picture.view.iter().map(|view| (Vec::new(), value(view))).collect()
    }

    fn view_rows(&self, rows: impl Fn(&View) -> Vec<Row>) -> Vec<Row> {
        self.picture.view.as_ref().map(rows).unwrap_or_default()
    }

    fn account_rows(&self, value: impl Fn(&crate::domain::view::AccountView) -> Credits) -> Vec<Row> {
        if self.detail == Detail::Aggregate {
            return Vec::new();
        }
        let label = |account: &AccountId| vec![("account", account.to_string())];
        self.view_rows(|view| view.accounts.iter().map(|account| (label(&account.account), credits(value(account)))).collect())
    }

    fn gpu_rows(&self, value: impl Fn(&crate::domain::meter::GpuSample) -> Option<Value>) -> Vec<Row> {
        let label = |gpu: &GpuId| vec![("gpu", gpu.to_string())];
        let seen = self.picture.gpus.as_ref().and_then(Reading::seen);
        seen.into_iter().flatten().filter_map(|gpu| Some((label(&gpu.gpu), value(gpu)?))).collect()
    }
}

fn one(value: Value) -> Vec<Row> {
    vec![(Vec::new(), value)]
}

fn whole(value: u64) -> Value {
    Value::Whole(value)
}

/// A number of `10^-digits` as the nearest float, by way of its decimal text: no float is ever computed with.
fn scaled(number: u128, digits: usize) -> Value {
    let text = format!("{number:0width$}", width = digits + 1);
    let (whole, fraction) = text.split_at(text.len() - digits);
    Value::Real(format!("{whole}.{fraction}").parse().unwrap_or(f64::NAN))
}

fn seconds(length: Nanos) -> Value {
    scaled(u128::from(length.0), 9)
}

fn credits(amount: Credits) -> Value {
    Value::Real(amount.to_string().parse().unwrap_or(f64::NAN))
}

fn build(_: &Scrape) -> Vec<Row> {
    vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], whole(1))]
}

fn card(scrape: &Scrape) -> Vec<Row> {
    let labels = |view: &View| {
        let card = view.card.as_ref()?;
        Some(vec![("name", card.name.to_string()), ("version", card.version.to_string()), ("digest", card.digest.to_string())])
    };
    scrape.view_rows(|view| labels(view).map(|labels| (labels, whole(1))).into_iter().collect())
}

fn mode(scrape: &Scrape) -> Vec<Row> {
    let row = |view: &View, mode: Enforcement| (vec![("mode", mode.name().to_owned())], whole(u64::from(view.enforcement == mode)));
    scrape.view_rows(|view| Enforcement::ALL.into_iter().map(|mode| row(view, mode)).collect())
}

fn jobs(scrape: &Scrape) -> Vec<Row> {
    scrape.view_rows(|view| jobs_by_phase(view).into_iter().map(|(phase, count)| (vec![("phase", phase)], whole(count))).collect())
}

fn gang_parts(scrape: &Scrape) -> Vec<Row> {
    let live = |view: &View, wanted: Want| {
        let gangs = view.jobs.iter().filter(|job| job.phase != Phase::Ended).filter_map(|job| job.gang.as_ref());
        u64::try_from(gangs.filter(|gang| gang.want == wanted).count()).unwrap_or(u64::MAX)
    };
    let wants = [("run", Want::Run), ("freeze", Want::Freeze)];
    scrape.view_rows(|view| wants.into_iter().map(|(word, want)| (vec![("want", word.to_owned())], whole(live(view, want)))).collect())
}

fn accounts(scrape: &Scrape) -> Vec<Row> {
    scrape.view_rows(|view| accounts_by_state(view).into_iter().map(|(state, count)| (vec![("state", state)], whole(count))).collect())
}

fn drawn(scrape: &Scrape) -> Vec<Row> {
    scrape.of_view(|view| credits(view.accounts.iter().map(|account| account.spent).sum()))
}

fn unfunded(scrape: &Scrape) -> Vec<Row> {
    scrape.of_view(|view| credits(view.accounts.iter().map(|account| account.unfunded).sum()))
}

fn owed(scrape: &Scrape) -> Vec<Row> {
    scrape.of_view(|view| credits(view.accounts.iter().map(|account| account.owed).sum()))
}

fn acts(scrape: &Scrape) -> Vec<Row> {
    let row = |((act, outcome), count): (&(&str, &str), &u64)| {
        (vec![("act", (*act).to_owned()), ("outcome", (*outcome).to_owned())], whole(*count))
    };
    scrape.picture.stats.acted.iter().map(row).collect()
}

fn over_budget(scrape: &Scrape) -> Vec<Row> {
    let row = |over: Over| (vec![("of", over.name().to_owned())], whole(u64::from(scrape.picture.stats.over_budget == Some(over))));
    vec![row(Over::Cpu), row(Over::Memory)]
}

fn threads(scrape: &Scrape) -> Vec<Row> {
    let row = |(thread, ns): (&String, &u64)| (vec![("thread", thread.clone())], seconds(Nanos(*ns)));
    scrape.picture.stats.threads_cpu_ns.iter().map(row).collect()
}

fn missing(scrape: &Scrape) -> Vec<Row> {
    scrape.picture.stats.missing.iter().map(|(reason, count)| (vec![("reason", reason.clone())], whole(*count))).collect()
}

fn gpus(scrape: &Scrape) -> Vec<Row> {
    let seen = scrape.picture.gpus.as_ref().and_then(Reading::seen);
    seen.map(|gpus| one(whole(u64::try_from(gpus.len()).unwrap_or(u64::MAX)))).unwrap_or_default()
}

fn gpu_busy(scrape: &Scrape) -> Vec<Row> {
    scrape.gpu_rows(|gpu| gpu.busy_permyriad.seen().map(|permyriad| scaled(u128::from(*permyriad), 4)))
}

fn gpu_memory(scrape: &Scrape) -> Vec<Row> {
    scrape.gpu_rows(|gpu| gpu.memory_used_bytes.seen().copied().map(whole))
}

fn account_in_hand(scrape: &Scrape) -> Vec<Row> {
    scrape.account_rows(|account| account.in_hand)
}

fn account_drawn(scrape: &Scrape) -> Vec<Row> {
    scrape.account_rows(|account| account.spent)
}

fn account_unfunded(scrape: &Scrape) -> Vec<Row> {
    scrape.account_rows(|account| account.unfunded)
}

fn account_burn(scrape: &Scrape) -> Vec<Row> {
    scrape.account_rows(|account| account.burn_per_hour)
}

fn balance_rows(scrape: &Scrape, value: impl Fn(&Balance) -> Value) -> Vec<Row> {
    if scrape.detail == Detail::Aggregate {
        return Vec::new();
    }
    let row = |balance: &Balance| (vec![("account", balance.account.to_string())], value(balance));
    scrape.view_rows(|view| view.accounts.iter().filter_map(|account| account.balance.as_ref()).map(row).collect())
}

fn account_free(scrape: &Scrape) -> Vec<Row> {
    balance_rows(scrape, |balance| credits(balance.free))
}

fn account_paid(scrape: &Scrape) -> Vec<Row> {
    balance_rows(scrape, |balance| credits(balance.paid))
}

fn account_committed(scrape: &Scrape) -> Vec<Row> {
    balance_rows(scrape, |balance| credits(balance.committed))
}

fn account_refill(scrape: &Scrape) -> Vec<Row> {
    balance_rows(scrape, |balance| credits(balance.refill))
}

fn account_alerts(scrape: &Scrape) -> Vec<Row> {
    balance_rows(scrape, |balance| whole(u64::from(balance.alerts)))
}

fn account_state(scrape: &Scrape) -> Vec<Row> {
    if scrape.detail == Detail::Aggregate {
        return Vec::new();
    }
    let labels = |account: &crate::domain::view::AccountView| {
        vec![("account", account.account.to_string()), ("state", state_name(account.state).to_owned())]
    };
    scrape.view_rows(|view| view.accounts.iter().map(|account| (labels(account), whole(1))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraped(detail: Detail) -> String {
        let picture = crate::node::sample::picture();
        let now = Mono(picture.taken_at_ns + 250_000_000);
        text(Arc::new(picture), now, detail, Format::OpenMetrics)
    }

    #[test]
    fn the_metrics_read_as_documented() {
        insta::assert_snapshot!(scraped(Detail::PerAccount));
    }

    #[test]
    fn the_classic_text_has_the_same_samples_and_its_own_heads() {
        let samples = |text: &str| -> Vec<(String, f64)> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
        };
        let picture = crate::node::sample::picture();
        let now = Mono(picture.taken_at_ns + 250_000_000);
        let classic = text(Arc::new(picture), now, Detail::PerAccount, Format::Classic);
        assert_eq!(samples(&classic), samples(&scraped(Detail::PerAccount)));
        assert!(classic.contains("# TYPE meterd_ticks_total counter\n") && classic.contains("# TYPE meterd_build_info gauge\n"));
        assert!(!classic.contains("# EOF"));
    }

    #[test]
    fn no_label_names_a_job_or_to_strangers_an_account() {
        let all = scraped(Detail::PerAccount);
        let aggregate = scraped(Detail::Aggregate);
        assert!(all.contains("account=\"lab\"") && !all.contains("u1000-train"));
        assert!(!aggregate.contains("account=") && !aggregate.contains("lab"), "{aggregate}");
        assert!(aggregate.ends_with("# EOF\n"));
    }

    #[test]
    fn before_the_first_tick_nothing_is_said_about_jobs() {
        let text = text(Arc::new(Picture::default()), Mono(0), Detail::PerAccount, Format::OpenMetrics);
        assert!(!text.contains("meterd_jobs"), "{text}");
        assert!(text.contains("meterd_build_info"));
    }

    #[test]
    fn a_float_comes_from_the_decimal_text() {
        let Value::Real(value) = seconds(Nanos(1_250_000_000)) else { panic!("seconds are real") };
        assert_eq!(value.to_string(), "1.25");
    }
}
