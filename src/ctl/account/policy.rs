//! What `meterctl account create` and `policy` say of a policy.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::ctl::client::Failure;
use crate::ctl::quantity::{length, length_or_none};
use crate::domain::id::AccountId;
use crate::domain::money::Credits;
use crate::domain::request::{CreateAccount, parse_policy};
use crate::domain::time::Nanos;
use crate::domain::wire::{OnExhaustion, StartPredicted};

/// An account, and those parts of its policy that are given.
#[derive(Debug, Args)]
pub(in crate::ctl) struct PolicyArguments {
    /// The account.
    pub(super) account: AccountId,
    /// A policy file: all that it says, and the defaults for the rest. What is given beside it stands above it.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What happens to its jobs when nothing is left.
    #[arg(long, value_enum)]
    on_exhaustion: Option<Exhaustion>,
    /// Between SIGTERM and SIGKILL.
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    grace: Option<Nanos>,
    /// How long before the expected end warnings come: up to four lengths, with commas between.
    #[arg(long, value_parser = length, value_delimiter = ',', value_name = "LENGTH,…")]
    warn_before: Option<Vec<Nanos>>,
    /// Starts are refused below this much credit.
    #[arg(long, value_name = "CREDITS")]
    start_threshold: Option<Credits>,
    /// Are starts refused whose time limit would use more than there is?
    #[arg(long, value_enum)]
    start_predicted: Option<Predicted>,
    /// Starts are refused if the credit would not last this long with them; 0s: not looked at.
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    start_funded: Option<Nanos>,
    /// What happens when nothing is in hand and the authority is silent.
    #[arg(long, value_enum, alias = "unreachable-rule")]
    unreachable: Option<Silence>,
    /// How far the agent goes against its jobs, where the node goes further.
    #[arg(long, value_enum)]
    enforcement: Option<Most>,
    /// How long its jobs stand still at most; 0s: for as long as it takes.
    #[arg(long, value_parser = length_or_none, value_name = "LENGTH")]
    freeze_ttl: Option<Nanos>,
    /// What comes after that.
    #[arg(long, value_enum)]
    then: Option<Last>,
    /// Which jobs stop first while credit runs short.
    #[arg(long, value_enum)]
    victims: Option<First>,
    /// From when on.
    #[arg(long, value_parser = length, value_name = "LENGTH")]
    victims_before: Option<Nanos>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Most {
    /// Record what would have been done.
    Observe,
    /// Warn as well.
    Notify,
    /// Freeze, terminate and kill as well.
    Enforce,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Last {
    /// SIGTERM, and SIGKILL after the grace.
    Terminate,
    /// SIGKILL.
    Kill,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the words of the configuration")]
enum First {
    /// All at zero.
    Together,
    /// The last one started.
    NewestFirst,
    /// The first one started.
    OldestFirst,
    /// The one that costs the most.
    DearestFirst,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Exhaustion {
    /// Frozen in place until credit arrives.
    Freeze,
    /// Frozen; then SIGTERM, and what has not ended after the grace stands still.
    Stop,
    /// Frozen; then SIGTERM, and SIGKILL after the grace.
    Terminate,
    /// Frozen; then killed.
    Kill,
    /// They run on, and no other starts; what they use is written off.
    RefuseNew,
    /// They run on, and others start; what they use is written off.
    AllowNegative,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Silence {
    /// Jobs stand still until it answers.
    Freeze,
    /// Jobs run on; what they use is owed until it answers.
    RunOn,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Predicted {
    /// They are.
    Check,
    /// They are not.
    Ignore,
}

/// The word that stands for it on the command line and in a body alike.
fn word<T: ValueEnum>(value: &T) -> Value {
    value.to_possible_value().map_or(Value::Null, |value| json!(value.get_name()))
}

impl PolicyArguments {
    /// What is given, as the parts of a body.
    ///
    /// # Errors
    /// Every mistake in the policy file.
    pub(super) fn parts(&self) -> Result<Map<String, Value>, Failure> {
        let on_exhaustion = self.on_exhaustion.map(|on| match on {
            Exhaustion::Freeze => OnExhaustion::Freeze,
            Exhaustion::Stop => OnExhaustion::Stop,
            Exhaustion::Terminate => OnExhaustion::Terminate,
            Exhaustion::Kill => OnExhaustion::Kill,
            Exhaustion::RefuseNew => OnExhaustion::RefuseNew,
            Exhaustion::AllowNegative => OnExhaustion::AllowNegative,
        });
        let predicted = self.start_predicted.map(|predicted| match predicted {
            Predicted::Check => StartPredicted::Check,
            Predicted::Ignore => StartPredicted::Ignore,
        });
        let seconds = |length: Nanos| json!(length.0 / 1_000_000_000);
        let parts = [
            ("on_exhaustion", on_exhaustion.map(|on| json!(on))),
            ("grace_s", self.grace.map(seconds)),
            ("warn_before_s", self.warn_before.as_ref().map(|lengths| lengths.iter().copied().map(seconds).collect())),
            ("enforcement", self.enforcement.as_ref().map(word)),
            ("freeze_ttl_s", self.freeze_ttl.map(seconds)),
            ("then", self.then.as_ref().map(word)),
            ("victims", self.victims.as_ref().map(word)),
            ("victims_before_s", self.victims_before.map(seconds)),
            ("start_threshold", self.start_threshold.map(|amount| json!(amount))),
            ("start_predicted", predicted.map(|predicted| json!(predicted))),
            ("start_funded_s", self.start_funded.map(seconds)),
            ("unreachable", self.unreachable.as_ref().map(word)),
        ];
        let mut body = match &self.file {
            Some(file) => from_file(file)?,
            None => Map::new(),
        };
        body.extend(parts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Ok(body)
    }
}

/// All parts of a policy file; what it does not have is `null`, so that it is taken away.
fn from_file(file: &Path) -> Result<Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::other(format!("cannot read {}: {error}", file.display())))?;
    let (policy, terms) = parse_policy(&text, &file.display().to_string()).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::other(lines.join("\n"))
    })?;
    // The account's name is put in its place by whoever sends this.
    let account = "account".parse().map_err(|_| Failure::other("no such name"))?;
    let Value::Object(mut body) = (CreateAccount { account, policy, terms }).to_json() else { return Ok(Map::new()) };
    body.remove("account");
    for key in ["unit", "credits_per_unit", "alerts", "refill", "allowance", "commitment"] {
        body.entry(key).or_insert(Value::Null);
    }
    Ok(body)
}
