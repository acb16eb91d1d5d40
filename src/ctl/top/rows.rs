//! What stands in the table: its rows, their order, and which columns there is room for.

use std::cmp::Reverse;

use clap::ValueEnum;

use super::look::{Look, OneAccount, Speeds};
use crate::ctl::quantity::{show_bytes, show_seconds};
use crate::ctl::table::Align;
use crate::domain::id::AccountId;
use crate::domain::job::{FrozenBy, Phase};
use crate::domain::money::Credits;
use crate::domain::view::{AccountState, JobView};
use crate::node::status::state_name;

/// Longest name that is shown whole where there is room.
const NAME_MAX: usize = 40;
/// Shortest room for a name before a column is given up for it.
const NAME_MIN: usize = 12;
/// Between two columns.
const BETWEEN: usize = 2;

/// By what rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// By name.
    Name,
    /// By CPU use.
    Cpu,
    /// By memory.
    Memory,
    /// By GPUs held.
    Gpus,
    /// By what they cost an hour.
    Burn,
    /// By what they have cost.
    Charge,
    /// By what is not paid.
    Owed,
    /// By how soon the account is empty.
    Zero,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Names from A, amounts from the greatest, ends from the nearest.
    Usual,
    /// The other way.
    Reversed,
}

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Accounts, each with its jobs below it.
    Accounts,
    /// Jobs alone.
    Jobs,
}

/// Are ended jobs shown?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Those still at hand.
    Shown,
    /// None.
    Hidden,
}

/// How the table is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) what: What,
    pub(super) sort: Sort,
    pub(super) order: Order,
    pub(super) ended: Ended,
}

/// How a row looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// An account.
    Account,
    /// An account without credit, or a job that stands still for lack of it.
    Alarm,
    /// A job that somebody else froze, or that is not there yet.
    Waiting,
    /// A job that has ended.
    Ended,
    /// A job that runs.
    Plain,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
}

/// The columns, and in which order they are given up where there is too little room: the highest number first.
const COLUMNS: [(&str, Align, u8); 12] = [
    ("NAME", Align::Left, 0),
    ("ACCOUNT", Align::Left, 6),
    ("STATE", Align::Left, 1),
    ("BALANCE", Align::Right, 7),
    ("IN HAND", Align::Right, 8),
    ("BURN/H", Align::Right, 9),
    ("ZERO IN", Align::Right, 2),
    ("CPU", Align::Right, 3),
    ("MEMORY", Align::Right, 5),
    ("GPUS", Align::Right, 10),
    ("CHARGE", Align::Right, 4),
    ("OWED", Align::Right, 11),
];

/// Which of the columns a table of these rows has.
fn columns(what: What) -> impl Iterator<Item = (usize, &'static (&'static str, Align, u8))> {
    let here = move |name: &str| match what {
        What::Accounts => name != "ACCOUNT",
        What::Jobs => !["BALANCE", "IN HAND", "BURN/H"].contains(&name),
    };
    COLUMNS.iter().enumerate().filter(move |(_, (name, ..))| here(name))
}

/// The headings.
pub(super) fn headings(what: What) -> Vec<(&'static str, Align)> {
    columns(what).map(|(_, (name, align, _))| (*name, *align)).collect()
}

/// The sums of some jobs, or one job's numbers.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    centicores: Option<u64>,
    memory_bytes: Option<u64>,
    gpus: usize,
    charge: Credits,
    owed: Credits,
}

impl Numbers {
    fn of(job: &JobView, speeds: &Speeds) -> Numbers {
        let live = job.phase != Phase::Ended;
        Numbers {
            centicores: speeds.centicores(job.attempt).filter(|_| live),
            memory_bytes: job.memory_bytes.filter(|_| live),
            gpus: if live { job.gpus.len() } else { 0 },
            charge: job.charge,
            owed: job.charge.minus(job.drawn).minus(job.unfunded).minus(job.waived.unwrap_or_default()).or_zero(),
        }
    }

    /// What is unknown of one job is left out of the sum; of all, it is unknown.
    fn plus(self, other: Numbers) -> Numbers {
        let sum = |a: Option<u64>, b: Option<u64>| a.zip(b).map_or(a.or(b), |(a, b)| Some(a.saturating_add(b)));
        Numbers {
            centicores: sum(self.centicores, other.centicores),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
            gpus: self.gpus + other.gpus,
            charge: self.charge.plus(other.charge),
            owed: self.owed.plus(other.owed),
        }
    }
}

/// What a row is sorted by.
struct Keyed<T> {
    name: String,
    numbers: Numbers,
    burn: Credits,
    lasts_s: Option<u64>,
    item: T,
}

fn sort<T>(rows: &mut [Keyed<T>], shape: Shape) {
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    match shape.sort {
        Sort::Name => {}
        Sort::Cpu => rows.sort_by_key(|row| Reverse(row.numbers.centicores)),
        Sort::Memory => rows.sort_by_key(|row| Reverse(row.numbers.memory_bytes)),
        Sort::Gpus => rows.sort_by_key(|row| Reverse(row.numbers.gpus)),
        Sort::Burn => rows.sort_by_key(|row| Reverse(row.burn)),
        Sort::Charge => rows.sort_by_key(|row| Reverse(row.numbers.charge)),
        Sort::Owed => rows.sort_by_key(|row| Reverse(row.numbers.owed)),
        Sort::Zero => rows.sort_by_key(|row| row.lasts_s.unwrap_or(u64::MAX)),
    }
    if shape.order == Order::Reversed {
        rows.reverse();
    }
}

/// All rows, in order.
pub(super) fn rows(look: &Look, speeds: &Speeds, shape: Shape) -> Vec<Row> {
    let shown = |job: &&JobView| shape.ended == Ended::Shown || job.phase != Phase::Ended;
    let jobs: Vec<Keyed<&JobView>> = look.jobs.iter().filter(shown).map(|job| keyed_job(look, speeds, job)).collect();
    let mut jobs = jobs;
    sort(&mut jobs, shape);
    if shape.what == What::Jobs {
        return jobs.iter().map(|job| job_row(job, shape.what)).collect();
    }
    let mut accounts: Vec<Keyed<(AccountId, Option<&OneAccount>)>> =
        account_ids(look, &jobs).map(|id| keyed_account(look, &jobs, id)).collect();
    sort(&mut accounts, shape);
    let mut all = Vec::new();
    for account in &accounts {
        all.push(account_row(account));
        all.extend(jobs.iter().filter(|job| job.item.account == account.item.0).map(|job| job_row(job, shape.what)));
    }
    all
}

/// The accounts that the caller may see, and those that its jobs are on.
fn account_ids<'a>(look: &'a Look, jobs: &'a [Keyed<&JobView>]) -> impl Iterator<Item = AccountId> {
    let listed = look.accounts.iter().map(|account| account.account.clone());
    let of_jobs = jobs.iter().map(|job| job.item.account.clone());
    listed.chain(of_jobs).collect::<std::collections::BTreeSet<AccountId>>().into_iter()
}

fn keyed_job<'a>(look: &Look, speeds: &Speeds, job: &'a JobView) -> Keyed<&'a JobView> {
    let account = look.accounts.iter().find(|account| account.account == job.account);
    let node = account.and_then(|account| account.node.as_ref()).filter(|_| job.phase != Phase::Ended);
    Keyed {
        name: job.job.to_string(),
        numbers: Numbers::of(job, speeds),
        burn: node.map_or(Credits::ZERO, |node| node.burn_per_hour),
        lasts_s: node.and_then(|node| node.lasts_s),
        item: job,
    }
}

fn keyed_account<'a>(look: &'a Look, jobs: &[Keyed<&JobView>], id: AccountId) -> Keyed<(AccountId, Option<&'a OneAccount>)> {
    let account = look.accounts.iter().find(|account| account.account == id);
    let node = account.and_then(|account| account.node.as_ref());
    let of_jobs = jobs.iter().filter(|job| job.item.account == id).map(|job| job.numbers);
    Keyed {
        name: id.to_string(),
        numbers: of_jobs.reduce(Numbers::plus).unwrap_or(Numbers { centicores: Some(0), memory_bytes: Some(0), ..Numbers::default() }),
        burn: node.map_or(Credits::ZERO, |node| node.burn_per_hour),
        lasts_s: node.and_then(|node| node.lasts_s),
        item: (id, account),
    }
}

fn account_row(row: &Keyed<(AccountId, Option<&OneAccount>)>) -> Row {
    let account = row.item.1;
    let node = account.and_then(|account| account.node.as_ref());
    let kept = account.and_then(|account| account.authority.as_ref());
    let state = node.map_or("-".to_owned(), |node| state_name(node.state).to_owned());
    let zero = match node {
        Some(node) if node.state != AccountState::Funded => "now".to_owned(),
        Some(node) => node.lasts_s.map_or("no end".to_owned(), show_seconds),
        None => "-".to_owned(),
    };
    let cells = [
        row.name.clone(),
        String::new(),
        state,
        kept.map_or("?".to_owned(), |kept| short(kept.available)),
        node.map_or("-".to_owned(), |node| short(node.in_hand)),
        node.map_or("-".to_owned(), |node| short(node.burn_per_hour)),
        zero,
    ];
    let tone = if node.is_some_and(|node| node.state != AccountState::Funded) { Tone::Alarm } else { Tone::Account };
    finished(cells, row.numbers, What::Accounts, tone)
}

fn job_row(row: &Keyed<&JobView>, what: What) -> Row {
    let job = row.item;
    let indent = if what == What::Accounts { "  " } else { "" };
    let zero = match what {
        What::Jobs => row.lasts_s.map_or(String::new(), show_seconds),
        What::Accounts => String::new(),
    };
    let empty = String::new;
    let cells = [format!("{indent}{}", row.name), job.account.to_string(), state(job), empty(), empty(), empty(), zero];
    let tone = match (job.phase, job.frozen_by) {
        (Phase::Frozen, Some(FrozenBy::Agent)) => Tone::Alarm,
        (Phase::Frozen | Phase::Awaited, _) => Tone::Waiting,
        (Phase::Ended, _) => Tone::Ended,
        (Phase::Running, _) => Tone::Plain,
    };
    finished(cells, row.numbers, what, tone)
}

fn finished(first: [String; 7], numbers: Numbers, what: What, tone: Tone) -> Row {
    let unknown = || "?".to_owned();
    let last = [
        numbers.centicores.map_or_else(unknown, |centi| format!("{}.{:02}", centi / 100, centi % 100)),
        numbers.memory_bytes.map_or_else(unknown, show_bytes),
        numbers.gpus.to_string(),
        short(numbers.charge),
        short(numbers.owed),
    ];
    let cells: Vec<String> = first.into_iter().chain(last).collect();
    Row { cells: columns(what).map(|(index, _)| cells[index].clone()).collect(), tone }
}

fn state(job: &JobView) -> String {
    let state = match (job.phase, job.frozen_by) {
        (Phase::Frozen, Some(FrozenBy::Agent)) if job.is_held_by_gang() => "frozen: its gang",
        (Phase::Frozen, Some(FrozenBy::Agent)) if job.outbid.is_some() => "frozen: bid too low",
        (Phase::Frozen, Some(FrozenBy::Agent)) => "frozen: no credit",
        (Phase::Frozen, _) => "frozen by another",
        (phase, _) => phase.name(),
    };
    let blind = job.phase != Phase::Ended && !job.missing.is_empty();
    if blind { format!("{state} (blind)") } else { state.to_owned() }
}

/// An amount with at most four digits behind the point; what is less than that and not nothing does not look like nothing.
fn short(amount: Credits) -> String {
    const UNIT: i128 = 100_000;
    let nano = amount.nano();
    if nano != 0 && -UNIT < nano && nano < UNIT {
        return if 0 < nano { "<0.0001".to_owned() } else { ">-0.0001".to_owned() };
    }
    Credits::from_nano(nano - nano % UNIT).to_string()
}

/// A table cut to a width: which columns, how wide each.
pub(super) struct Fitted {
    columns: Vec<(usize, usize, Align)>,
}

impl Fitted {
    /// Gives columns up, the least important first, until the rest has room; names are shortened last.
    pub(super) fn new(what: What, rows: &[Row], width: usize) -> Fitted {
        let mut kept: Vec<(usize, usize, Align, u8)> = columns(what)
            .enumerate()
            .map(|(index, (_, (name, align, rank)))| {
                let cells = rows.iter().map(|row| row.cells[index].chars().count());
                (index, cells.chain([name.len()]).max().unwrap_or(0), *align, *rank)
            })
            .collect();
        let name = kept[0].1.min(NAME_MAX);
        kept[0].1 = name.min(NAME_MIN);
        let room = |kept: &[(usize, usize, Align, u8)]| kept.iter().map(|(_, width, ..)| width + BETWEEN).sum::<usize>() - BETWEEN;
        while width < room(&kept) && 1 < kept.len() {
            let least = kept.iter().enumerate().max_by_key(|(_, column)| column.3).map_or(0, |(at, _)| at);
            kept.remove(least);
        }
        let spare = width.saturating_sub(room(&kept));
        kept[0].1 = name.min(kept[0].1 + spare).min(width);
        Fitted { columns: kept.into_iter().map(|(index, width, align, _)| (index, width, align)).collect() }
    }

    /// One line of the table.
    pub(super) fn line(&self, cells: &[String]) -> String {
        let cell = |(index, width, align): &(usize, usize, Align)| {
            let text = shortened(&cells[*index], *width);
            match align {
                Align::Left => format!("{text:<width$}"),
                Align::Right => format!("{text:>width$}"),
            }
        };
        self.columns.iter().map(cell).collect::<Vec<_>>().join(&" ".repeat(BETWEEN))
    }
}

/// At most so many characters; the last one says that something is missing.
pub(super) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain("…".chars().take(width)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::look;
    use super::*;

    fn shape(what: What, sort: Sort) -> Shape {
        Shape { what, sort, order: Order::Usual, ended: Ended::Hidden }
    }

    fn table(width: usize, shape: Shape) -> Vec<String> {
        let look = look::sample();
        let all = rows(&look, &Speeds::default(), shape);
        let fitted = Fitted::new(shape.what, &all, width);
        let headings: Vec<String> = headings(shape.what).into_iter().map(|(name, _)| name.to_owned()).collect();
        [fitted.line(&headings)].into_iter().chain(all.iter().map(|row| fitted.line(&row.cells))).collect()
    }

    #[test]
    fn jobs_stand_below_their_account() {
        insta::assert_snapshot!(table(160, shape(What::Accounts, Sort::Name)).join("\n"));
    }

    #[test]
    fn jobs_stand_alone() {
        insta::assert_snapshot!(table(160, shape(What::Jobs, Sort::Charge)).join("\n"));
    }

    #[test]
    fn a_narrow_table_gives_up_the_least_important_columns_and_keeps_its_width() {
        for width in [8, 20, 40, 60, 80, 120, 200] {
            for what in [What::Accounts, What::Jobs] {
                let lines = table(width, shape(what, Sort::Name));
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:#?}");
                assert!(lines[0].starts_with("NAME"));
                assert!(width < 40 || lines[0].contains("STATE"), "{width}: {}", lines[0]);
            }
        }
    }

    #[test]
    fn rows_are_sorted_and_the_other_way_on_demand() {
        let mut look = look::sample();
        look.jobs[0].charge = "3".parse().unwrap();
        look.jobs[1].charge = "5".parse().unwrap();
        let names = |shape| -> Vec<String> { rows(&look, &Speeds::default(), shape).iter().map(|row| row.cells[0].clone()).collect() };
        assert_eq!(names(shape(What::Jobs, Sort::Charge)), ["slurm:4711", "u1000-train"]);
        assert_eq!(names(Shape { order: Order::Reversed, ..shape(What::Jobs, Sort::Charge) }), ["u1000-train", "slurm:4711"]);
        assert_eq!(names(shape(What::Accounts, Sort::Zero)), ["lab", "  slurm:4711", "  u1000-train", "idle"]);
        let all = Shape { ended: Ended::Shown, ..shape(What::Jobs, Sort::Name) };
        assert_eq!(names(all).len(), 3);
    }

    #[test]
    fn an_amount_is_short_and_a_little_is_not_nothing() {
        let shown = |text: &str| short(text.parse().unwrap());
        assert_eq!(["0", "1.5", "12.123456789", "0.00001", "64.2"].map(shown), ["0", "1.5", "12.1234", "<0.0001", "64.2"]);
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("abcdef", 0), "");
    }
}
