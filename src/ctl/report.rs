//! `meterctl report`: what was spent and on what, an account's statement of a month, and whether receipts and ledger agree.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::authority::{Door, Remote};
use super::client::{Client, Failure, account_path, typed};
use super::exit::Exit;
use super::period::{Period, month_of, period};
use super::quantity::show_wide_length;
use super::stored::Stored;
use super::table::{Align, pairs, table};
use super::{Format, Output, STATE_DIR, print, reconcile};
use crate::domain::id::AccountId;
use crate::domain::ledger::{AccountView, LedgerEntry};
use crate::domain::money::Credits;
use crate::domain::receipt::{Receipt, rfc3339};
use crate::domain::reconcile::Reconciled;
use crate::domain::report::{self, By, JobCost, Row, Span, Spending, UnderUsed};
use crate::domain::statement::{Committed, Line, Statement, What, statement};
use crate::domain::time::Wall;
use crate::node::clock;

/// Jobs that are listed.
const LISTED: usize = 10;
/// Most lines of a ledger that the agent gives at once.
const LEDGER_LIMIT: usize = 10_000;

/// What to tell.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    spent: SpentArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A month of one account: opening balance, every deposit, use by day, closing balance.
    Statement(StatementArguments),
    /// Compare this node's receipts with the authority's ledger, from their files; each difference is named, and the exit code is 1 if there is one.
    Reconcile(ReconcileArguments),
}

/// What was spent.
#[derive(Debug, Args)]
struct SpentArguments {
    /// What the rows are.
    #[arg(long, value_enum, default_value = "account")]
    by: Rows,
    /// month, last-month, today, 14d, 2026-03, 2026-03-01..2026-03-14, or an hour as 2026-03-01T10; days are those of UTC.
    #[arg(long, value_parser = period, default_value = "month", value_name = "PERIOD")]
    period: Period,
    /// Only this account's jobs.
    #[arg(long)]
    account: Option<AccountId>,
    /// The rows as comma-separated values.
    #[arg(long, conflicts_with_all = ["json", "output"])]
    csv: bool,
    /// All of it as JSON; the same as --output json.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    stored: Stored,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rows {
    /// Who pays.
    Account,
    /// What the start stated as `project`.
    Project,
    /// Whose jobs.
    User,
    /// What the start stated as `model`.
    Model,
    /// What the start stated as `label`.
    Label,
    /// Each attempt of each job; of a job on several nodes, all parts together.
    Job,
    /// The days of the period in which there were jobs: how spending goes.
    Day,
}

/// Whose month.
#[derive(Debug, Args)]
struct StatementArguments {
    /// The account.
    account: AccountId,
    /// last-month, month, or such as 2026-03.
    #[arg(long, value_parser = period, default_value = "last-month", value_name = "PERIOD")]
    period: Period,
    /// The lines as comma-separated values.
    #[arg(long, conflicts_with = "output")]
    csv: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    remote: Remote,
}

/// Which files.
#[derive(Debug, Args)]
struct ReconcileArguments {
    /// The agent's `state_dir`.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Print this node's side as JSON and compare nothing: to be taken to the authority's machine.
    #[arg(long, conflicts_with_all = ["nodes", "ledger"])]
    export: bool,
    /// A node's side, as --export wrote it; may be given several times, once for each node of the fleet.
    #[arg(long = "node", value_name = "FILE", requires = "ledger")]
    nodes: Vec<PathBuf>,
    /// The authority's file (`authority.db` in the `state_dir` of meter-authority), read after the nodes' sides were written.
    #[arg(long, value_name = "FILE", requires = "nodes")]
    ledger: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl Rows {
    fn of(self, receipts: &[Receipt], span: Span) -> Vec<Row> {
        let by = match self {
            Rows::Account => By::Account,
            Rows::Project => By::Project,
            Rows::User => By::User,
            Rows::Model => By::Model,
            Rows::Label => By::Label,
            Rows::Job => By::Job,
            Rows::Day => return report::days(receipts, span),
        };
        report::rows(receipts, by, span)
    }
}

/// Everything that a report says.
#[derive(Serialize)]
struct Document {
    by: String,
    span: Span,
    rows: Vec<Row>,
    total: Credits,
    spending: Spending,
    dearest: Vec<JobCost>,
    under_used: Vec<UnderUsed>,
    still_running: usize,
    /// Beside the rows: what running jobs are charged at their ends.
    pending: Credits,
}

pub(super) fn main(socket: &Path, arguments: &Arguments) -> Result<Exit, Failure> {
    match &arguments.command {
        None => spent(socket, &arguments.spent),
        Some(Command::Statement(wanted)) => statement_of(&wanted.remote.door(socket.to_owned()), wanted, clock::now().wall),
        Some(Command::Reconcile(wanted)) => reconciled(wanted),
    }
}

fn spent(socket: &Path, wanted: &SpentArguments) -> Result<Exit, Failure> {
    let asked = clock::now().wall;
    let since = wanted.period.span(asked).from.min(month_of(asked).from).min(Span::days(30, asked).from);
    let mut receipts = wanted.stored.receipts(socket, since)?;
    receipts.retain(|receipt| wanted.account.as_ref().is_none_or(|account| receipt.account == *account));
    // What running jobs have used by then is on their receipts.
    let now = clock::now().wall;
    let document = document(&receipts, wanted.by, wanted.period.span(now), now);
    let output = if wanted.json { Output::Json } else { wanted.format.output };
    match output {
        _ if wanted.csv => print(&csv(&document)),
        Output::Json => print(&json(&document)?),
        Output::Text => print(&text(&document)),
    }
    Ok(Exit::Done)
}

fn json<T: Serialize>(document: &T) -> Result<String, Failure> {
    Ok(format!("{}\n", serde_json::to_string_pretty(document).map_err(Failure::other)?))
}

fn document(receipts: &[Receipt], by: Rows, span: Span, now: Wall) -> Document {
    Document {
        by: by.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned()),
        span,
        rows: named(by.of(receipts, span), by),
        total: report::spent(receipts, span),
        spending: report::spending(receipts, month_of(now), now),
        dearest: report::dearest(receipts, span, LISTED),
        under_used: report::under_used(receipts, span, LISTED),
        still_running: report::still_running(receipts),
        pending: report::pending(receipts),
    }
}

/// Users by their names, where this machine knows them.
fn named(mut rows: Vec<Row>, by: Rows) -> Vec<Row> {
    if matches!(by, Rows::User) {
        for key in rows.iter_mut().filter_map(|row| row.key.as_mut()) {
            let user = key.parse().ok().and_then(uzers::get_user_by_uid);
            if let Some(user) = user {
                *key = format!("{} ({key})", user.name().to_string_lossy());
            }
        }
    }
    rows
}

fn text(document: &Document) -> String {
    let Document { by, span, rows, total, spending, dearest, under_used, still_running, pending } = document;
    let mut text = format!("{} to {} (UTC), by {by}; amounts in credits\n\n", rfc3339(span.from), rfc3339(span.to));
    let heading = by.to_uppercase();
    let headings = [
        (heading.as_str(), Align::Left),
        ("JOBS", Align::Right),
        ("CHARGE", Align::Right),
        ("UNFUNDED", Align::Right),
        ("CPU TIME", Align::Right),
        ("RAN", Align::Right),
        ("GPU TIME", Align::Right),
    ];
    let row = |row: &Row| {
        let [cpu, ran, gpu] = [row.cpu_ns, row.running_ns, row.gpu_held_ns].map(show_wide_length);
        let (charge, unfunded) = (row.charge.to_string(), row.unfunded.to_string());
        vec![row.key.clone().unwrap_or_else(|| "(not stated)".to_owned()), row.jobs.to_string(), charge, unfunded, cpu, ran, gpu]
    };
    text.push_str(&table(&headings, &rows.iter().map(row).collect::<Vec<_>>()));
    let _ = writeln!(text, "together {total} credits\n");
    let Spending { month, projected, days_7, days_14, days_30 } = spending;
    text.push_str(&pairs(&[
        ("this month so far", month.to_string()),
        ("projected", format!("{projected} by the month's end, at the pace of the last 7 days")),
        ("last 7 days", days_7.to_string()),
        ("last 14 days", days_14.to_string()),
        ("last 30 days", days_30.to_string()),
    ]));
    text.push_str(&dearest_text(dearest));
    text.push_str(&under_used_text(under_used));
    if 0 < *still_running {
        let at_the_end =
            if pending.is_zero() { String::new() } else { format!(", but for {pending} credits that are charged at their ends") };
        let _ = writeln!(text, "\ngoing on: {still_running}; what they cost so far is in here{at_the_end}");
    }
    text
}

fn dearest_text(jobs: &[JobCost]) -> String {
    let headings =
        [("  JOB", Align::Left), ("ATTEMPT", Align::Right), ("ACCOUNT", Align::Left), ("USER", Align::Right), ("CHARGE", Align::Right)];
    let row = |job: &JobCost| {
        let name = format!("  {}", job.job);
        vec![name, job.attempt.to_string(), job.account.to_string(), job.owner_uid.to_string(), job.charge.to_string()]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    if rows.is_empty() { String::new() } else { format!("\nmost expensive\n{}", table(&headings, &rows)) }
}

fn under_used_text(jobs: &[UnderUsed]) -> String {
    let headings = [
        ("  JOB", Align::Left),
        ("ATTEMPT", Align::Right),
        ("ACCOUNT", Align::Left),
        ("CHARGE", Align::Right),
        ("OF ITS CPUS", Align::Right),
        ("OF ITS MEMORY", Align::Right),
        ("OF ITS GPUS", Align::Right),
        ("GPUS HELD", Align::Right),
    ];
    let part = |permille: Option<u64>| permille.map_or("not stated".to_owned(), |part| format!("{}.{} %", part / 10, part % 10));
    let held = |ns: u128| if ns == 0 { "none".to_owned() } else { show_wide_length(ns) };
    let row = |job: &UnderUsed| {
        let name = format!("  {}", job.job);
        let (cpu, memory) = (part(job.cpu_permille), part(job.memory_permille));
        let busy = match (job.gpu_permille, job.gpu_held_ns) {
            (_, 0) => "none held".to_owned(),
            (None, _) => "not metered".to_owned(),
            (busy, _) => part(busy),
        };
        vec![name, job.attempt.to_string(), job.account.to_string(), job.charge.to_string(), cpu, memory, busy, held(job.gpu_held_ns)]
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\nunder-used: less than half of what was stated, or held GPUs busy for less than half of the time (where a card prices that)\n{}",
        table(&headings, &rows)
    )
}

fn csv(document: &Document) -> String {
    let mut text = format!("{},jobs,charge,unfunded,cpu_ns,running_ns,gpu_held_ns\n", document.by);
    for row in &document.rows {
        let key = quoted(row.key.as_deref().unwrap_or_default());
        let Row { jobs, charge, unfunded, cpu_ns, running_ns, gpu_held_ns, .. } = row;
        let _ = writeln!(text, "{key},{jobs},{charge},{unfunded},{cpu_ns},{running_ns},{gpu_held_ns}");
    }
    text
}

/// A field of comma-separated values (RFC 4180). A spreadsheet must not take one for a formula.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '-', '@', '\t']);
    let plain = !field.contains([',', '"', '\n', '\r']) && !formula;
    let guard = if formula { "'" } else { "" };
    if plain { field.to_owned() } else { format!("\"{guard}{}\"", field.replace('"', "\"\"")) }
}

#[derive(serde::Deserialize)]
struct OneAccount {
    authority: AccountView,
}

#[derive(serde::Deserialize)]
struct Ledger {
    entries: Vec<LedgerEntry>,
}

fn statement_of(to: &Door, wanted: &StatementArguments, now: Wall) -> Result<Exit, Failure> {
    let client = Client::new(to)?;
    let name = wanted.account.as_str();
    // The balance between two readings of the ledger that are one: nothing moved meanwhile.
    for _ in 0..5 {
        let read = || -> Result<Ledger, Failure> { typed(client.read(&account_path(name, &format!("/ledger?limit={LEDGER_LIMIT}")))?) };
        let before = read()?;
        let OneAccount { authority } = typed(client.read(&account_path(name, ""))?)?;
        let after = read()?;
        if LEDGER_LIMIT <= after.entries.len() {
            return Err(Failure::Other(format!(
                "account {name} has more than {LEDGER_LIMIT} ledger lines: its first ones are not to be had"
            )));
        }
        if before.entries == after.entries {
            let made = statement(&authority, &after.entries, wanted.period.span(now), now);
            match wanted.format.output {
                _ if wanted.csv => print(&statement_csv(&made)),
                Output::Json => print(&json(&made)?),
                Output::Text => print(&statement_text(&wanted.account, &made)),
            }
            return Ok(Exit::Done);
        }
    }
    Err(Failure::Other(format!("account {name} moves too fast for a statement: try again")))
}

fn statement_text(account: &AccountId, statement: &Statement) -> String {
    let Statement { span, opening, lines, closing, open, commitments } = statement;
    let mut text = format!("statement of account {account}\n{} to {} (UTC); amounts in credits\n\n", rfc3339(span.from), rfc3339(span.to));
    let headings = [("WHEN", Align::Left), ("WHAT", Align::Left), ("CHANGE", Align::Right), ("BALANCE", Align::Right)];
    let mut balance = *opening;
    let mut rows = vec![vec![String::new(), "opening balance".to_owned(), String::new(), opening.to_string()]];
    for line in lines {
        balance = balance.plus(line.change);
        let when = rfc3339(line.at);
        let when = when.split('T').next().unwrap_or(&when);
        rows.push(vec![when.to_owned(), what_text(line), line.change.to_string(), balance.to_string()]);
    }
    rows.push(vec![String::new(), "closing balance".to_owned(), String::new(), closing.to_string()]);
    text.push_str(&table(&headings, &rows));
    text.push_str(&commitments_text(commitments));
    if *open {
        text.push_str("\nnot final: the period is not over, or its last hour still grows\n");
    }
    text
}

fn statement_csv(statement: &Statement) -> String {
    let mut balance = statement.opening;
    let mut text = format!("when,what,change,balance\n{},opening balance,,{balance}\n", rfc3339(statement.span.from));
    for line in &statement.lines {
        balance = balance.plus(line.change);
        let _ = writeln!(text, "{},{},{},{balance}", rfc3339(line.at), quoted(&what_text(line)), line.change);
    }
    let _ = writeln!(text, "{},closing balance,,{}", rfc3339(statement.span.to), statement.closing);
    text
}

fn what_text(line: &Line) -> String {
    let Line { what, amount, .. } = line;
    match what {
        What::Deposit { payment, bucket } => format!("deposit ({bucket}), payment {payment}"),
        What::Usage => "usage".to_owned(),
        What::OutcomeRefund => "given back by outcome".to_owned(),
        What::WriteOff => format!("written off: {amount}"),
        What::Shortfall => format!("shortfall: {amount}"),
        What::Refill { payment } => format!("refill, payment {payment}"),
        What::Refund { payment } => format!("refund {payment}"),
        What::Correction { payment } => format!("correction {payment}"),
        What::Revoked { revocation } => format!("revoked, by {revocation}"),
        What::Allowance => "allowance of the month".to_owned(),
        What::Expired => "lapsed".to_owned(),
        What::Mirrored => "as the billing engine says".to_owned(),
        What::Commitment => "commitment".to_owned(),
        What::CommitmentLapsed => "lapsed of the commitment".to_owned(),
        What::TransferOut { to } => format!("transfer to {to}"),
        What::TransferIn { from } => format!("transfer from {from}"),
    }
}

/// Such as `commitment until 2027-02-01T00:00:00.000Z: committed 1200, used 800, lapsed 400`.
fn commitments_text(periods: &[Committed]) -> String {
    let line = |period: &Committed| {
        let Committed { from: _, until, committed, given_back, used, revoked, lapsed, left } = period;
        let some = |what: &str, amount: &Credits| if amount.is_zero() { String::new() } else { format!(", {what} {amount}") };
        let (back, revoked, left) = (some("given back", given_back), some("revoked", revoked), some("left", left));
        format!("commitment until {}: committed {committed}{back}, used {used}, lapsed {lapsed}{revoked}{left}\n", rfc3339(*until))
    };
    let lines: String = periods.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

fn reconciled(wanted: &ReconcileArguments) -> Result<Exit, Failure> {
    if wanted.export {
        print(&json(&reconcile::export(&wanted.state_dir)?)?);
        return Ok(Exit::Done);
    }
    let found = match &wanted.ledger {
        Some(ledger) => reconcile::of_fleet(&wanted.nodes, ledger)?,
        None => reconcile::of_files(&wanted.state_dir)?,
    };
    match wanted.format.output {
        Output::Json => print(&json(&found)?),
        Output::Text => print(&reconciled_text(&found)),
    }
    Ok(if found.differences.is_empty() { Exit::Done } else { Exit::Failed })
}

fn reconciled_text(found: &Reconciled) -> String {
    let Reconciled { accounts, drawn, settled, refunded, differences, untold, newer } = found;
    let mut text =
        format!("accounts compared: {accounts}; drawn on the nodes' receipts: {drawn} credits; charged by the authority: {settled}\n");
    if !refunded.is_zero() {
        let _ = writeln!(text, "given back by the outcomes of jobs, on the nodes' receipts: {refunded}");
    }
    for difference in differences {
        let _ = writeln!(
            text,
            "DIFFERENCE {}: {}: {} and {} ({})",
            difference.account, difference.what, difference.one, difference.other, difference.code
        );
    }
    for on_its_way in untold {
        let _ = writeln!(
            text,
            "on its way: account {}: {} drawn and {} written off since the authority was last told",
            on_its_way.account, on_its_way.drawn, on_its_way.unfunded
        );
    }
    for account in newer {
        let _ = writeln!(
            text,
            "not compared: account {account}: the authority has heard more of it since a node's side was written; its ledger was looked at alone"
        );
    }
    text.push_str(match (differences.is_empty(), newer.len()) {
        (true, 0) => "OK: receipts and ledger agree\n",
        (true, _) => "OK as far as they were compared\n",
        (false, _) => "",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::sample;

    fn receipts() -> Vec<Receipt> {
        let mut other = sample::receipt();
        (other.job, other.attempt) = ("fit".parse().unwrap(), crate::domain::id::Attempt(8));
        (other.cpus, other.memory_bytes) = (Some(64), Some(256 << 30));
        let project = (crate::domain::rates::Trait::Project, "chat".parse().unwrap());
        other.traits.extend([project]);
        vec![sample::receipt(), other]
    }

    fn at(text: &str) -> Wall {
        crate::domain::receipt::instant(text).unwrap()
    }

    #[test]
    fn a_report_reads_from_rows_to_hints() {
        let now = at("2026-03-10T12:00:00Z");
        let document = document(&receipts(), Rows::Project, month_of(now), now);
        insta::assert_snapshot!(text(&document));
        insta::assert_snapshot!(csv(&document));
        insta::assert_snapshot!(json(&document).unwrap());
    }

    #[test]
    fn v2_what_running_jobs_keep_back_for_their_ends_is_said_beside_what_they_cost() {
        let now = at("2026-03-10T12:00:00Z");
        let mut receipts = receipts();
        let told = |receipts: &[Receipt]| text(&document(receipts, Rows::Account, month_of(now), now));
        assert!(told(&receipts).ends_with("what they cost so far is in here\n"), "{}", told(&receipts));
        receipts[1].pending = "0.54".parse().unwrap();
        assert!(told(&receipts).ends_with(", but for 0.54 credits that are charged at their ends\n"), "{}", told(&receipts));
    }

    #[test]
    fn d7_an_export_holds_every_job_and_no_formula() {
        let now = at("2026-03-10T12:00:00Z");
        let exported = csv(&document(&receipts(), Rows::Job, month_of(now), now));
        assert_eq!(exported.lines().count(), 3, "{exported}");
        assert!(exported.contains("u1000-train#7,1,64.2,"), "{exported}");
        let fields = [("a", "a"), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""), ("=1+1", "\"'=1+1\""), ("@x", "\"'@x\""), ("", "")];
        for (field, written) in fields {
            assert_eq!(quoted(field), written, "{field}");
        }
    }

    #[test]
    fn s12_every_row_of_a_report_by_user_is_one_user_of_the_records() {
        let now = at("2026-03-10T12:00:00Z");
        let mut receipts = receipts();
        receipts[1].owner_uid = crate::domain::id::Uid(4_294_967_294);
        let rows = document(&receipts, Rows::User, month_of(now), now).rows;
        let keys: Vec<&str> = rows.iter().filter_map(|row| row.key.as_deref()).collect();
        assert_eq!(keys.len(), 2);
        assert!(keys.iter().any(|key| key.contains("1000")) && keys.contains(&"4294967294"), "{keys:?}");
    }

    #[test]
    fn a_statement_stands_in_columns_with_its_running_balance() {
        let entries = sample::ledger_entries();
        let span = Span { from: at("2026-03-01T00:00:00Z"), to: at("2026-04-01T00:00:00Z") };
        let made = statement(&sample::ledger_account(), &entries, span, at("2026-03-02T00:00:00Z"));
        insta::assert_snapshot!(statement_text(&"lab".parse().unwrap(), &made));
    }

    #[test]
    fn r4_a_statement_as_csv_has_the_lines_and_balances_of_the_text() {
        let entries = sample::ledger_entries();
        let span = Span { from: at("2026-03-01T00:00:00Z"), to: at("2026-04-01T00:00:00Z") };
        let made = statement(&sample::ledger_account(), &entries, span, at("2026-03-02T00:00:00Z"));
        let csv = statement_csv(&made);
        insta::assert_snapshot!(csv);
        // What is quoted has commas of its own.
        let plain = csv.replace("\"deposit (paid), payment inv-7\"", "deposit");
        let rows: Vec<Vec<&str>> = plain.lines().map(|line| line.split(',').collect()).collect();
        assert!(rows.iter().all(|row| row.len() == 4), "{csv}");
        let credits = |text: &str| text.parse::<Credits>().unwrap();
        let mut balance = credits(rows[1][3]);
        for row in &rows[2..rows.len() - 1] {
            balance = balance.plus(credits(row[2]));
            assert_eq!(balance, credits(row[3]), "{row:?}");
        }
        assert_eq!((rows[1][1], credits(rows[1][3])), ("opening balance", made.opening));
        let last = &rows[rows.len() - 1];
        assert_eq!((last[1], credits(last[3]), balance), ("closing balance", made.closing, made.closing));
    }

    #[test]
    fn differences_are_named_and_what_is_on_its_way_is_not_one() {
        let lab: AccountId = "lab".parse().unwrap();
        let credits = |text: &str| text.parse().unwrap();
        let found = Reconciled {
            accounts: 2,
            drawn: credits("10"),
            settled: credits("9"),
            differences: vec![crate::domain::reconcile::Difference {
                account: lab.clone(),
                code: "receipts_drawn",
                what: "drawn on this node's receipts, and claimed at the authority",
                one: credits("9.5"),
                other: credits("9"),
            }],
            untold: vec![crate::domain::reconcile::Untold { account: lab, drawn: credits("0.5"), unfunded: Credits::ZERO }],
            ..Reconciled::default()
        };
        insta::assert_snapshot!(reconciled_text(&found));
        assert!(reconciled_text(&Reconciled::default()).contains("OK: "));
    }
}
