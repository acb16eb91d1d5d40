//! What is probably wrong with a card that can be read: holes and overlaps in time, lines that are never reached or never matter, prices in
//! the wrong unit, selectors that nothing matches. Each with its line and what to do about it.

use super::card::{Card, GpuSelector, Line};
use super::rules::{Anchor, Factor, Rules, Timing, Traits, meet};
use crate::domain::form::{Mistake, Place};
use crate::domain::id::LineId;
use crate::domain::money::NANO;
use crate::domain::outcome::Outcome;
use crate::domain::receipt::rfc3339;
use crate::domain::time::Wall;
use crate::domain::usage::Meter;

/// How the names begin that NVML gives to devices.
const GPU_NAMES: [&str; 8] = ["NVIDIA ", "Tesla ", "Quadro ", "GeForce ", "GRID ", "TITAN ", "A100-", "GPU"];
/// Families of which no device is called so and no more: `NVIDIA H100 80GB HBM3`.
const GPU_FAMILIES: [&str; 6] = ["NVIDIA H100", "NVIDIA A100", "NVIDIA V100", "NVIDIA GH200", "Tesla V100", "Tesla P100"];
/// A longer increment or minimum of time is a slip: seconds written where hours are meant.
const TIME_MAX_NS: u128 = 31 * 86_400 * 1_000_000_000;
/// Prices of one meter in two units that differ by more are a slip: 3,600 seconds are in an hour.
const UNITS_APART_MAX: u128 = 500;
/// A greater factor is a slip: percent.
const FACTOR_MAX: Factor = Factor(10 * Factor::SCALE);

/// A card and what is probably wrong with it.
///
/// # Errors
/// Every mistake that makes it no card.
pub fn check(text: &str, file: &str) -> Result<(Card, Vec<Mistake>), Vec<Mistake>> {
    let card = Card::parse(text, file)?;
    let mut checker = Checker { text, file, found: Vec::new() };
    for (nth, line) in card.lines.iter().enumerate() {
        checker.price(line);
        checker.selectors(line, &card.lines[..nth]);
        if let Some(rules) = line.rules.as_deref() {
            checker.rules(line, rules);
        }
        for earlier in &card.lines[..nth] {
            checker.pair(earlier, line);
        }
        checker.shadowed(line, &card);
        checker.refused(line, &card);
        checker.dates(line, &card);
        checker.devices(line, &card);
        checker.bids(line, &card);
    }
    let Checker { mut found, .. } = checker;
    found.sort_by(|a, b| a.place.cmp(&b.place));
    Ok((card, found))
}

struct Checker<'t> {
    text: &'t str,
    file: &'t str,
    found: Vec<Mistake>,
}

/// A quantity of a meter that people know the price of, in base units, and the most credits that anybody asks for it.
const fn usual(meter: Meter) -> (&'static str, u128, u128) {
    const HOUR_NS: u128 = 3_600 * 1_000_000_000;
    match meter {
        Meter::CpuTime => ("a core-hour", HOUR_NS, 100),
        Meter::MemoryCharged | Meter::MemoryAnon | Meter::GpuMemory | Meter::Storage => ("a GiB-hour", HOUR_NS << 30, 100),
        Meter::GpuHeld | Meter::GpuBusy => ("a GPU-hour", HOUR_NS, 2_000),
        Meter::Energy => ("a kWh", 3_600_000_000, 1_000),
        Meter::IoBytes => ("a GB", 1_000_000_000, 10_000),
        Meter::Counter | Meter::Events => ("a thousand", 1_000, 1_000_000_000),
        Meter::WallTime => ("an hour", HOUR_NS, 20_000),
        Meter::JobStarts => ("a start", 1, 100_000),
    }
}

/// What that costs under a line without its rules, in nano-credits.
fn usual_nano(line: &Line) -> u128 {
    let plain = Line { rules: None, round: super::Rounding::Up, ..line.clone() };
    super::charge::cost_of(&plain, usual(line.meter).1).map_or(u128::MAX, |cost| cost.nano().unsigned_abs())
}

/// Can one job be such as both say?
fn compatible(one: &Traits, two: &Traits) -> bool {
    one.iter().all(|(which, value)| two.get(which).is_none_or(|other| other == value))
}

/// Such as `tier spot and qos night`.
fn told(selected: &Traits) -> String {
    let parts: Vec<String> = selected.iter().map(|(which, value)| format!("{} {value}", which.name())).collect();
    parts.join(" and ")
}

/// Is every device of the second also one of the first, and not the other way round?
fn is_wider(wide: &GpuSelector, narrow: &GpuSelector) -> bool {
    match (wide, narrow) {
        (GpuSelector::Any, GpuSelector::Prefix(_) | GpuSelector::Exact(_)) => true,
        (GpuSelector::Prefix(wide), GpuSelector::Prefix(narrow)) => wide != narrow && narrow.starts_with(wide.as_str()),
        (GpuSelector::Prefix(wide), GpuSelector::Exact(narrow)) => narrow.as_str().starts_with(wide.as_str()),
        _ => false,
    }
}

impl Checker<'_> {
    fn note(&mut self, line: &Line, code: &'static str, message: &str, hint: &str) {
        let message = format!("line {}: {message}", line.id);
        self.found.push(Mistake { code, place: self.place(line), message, hint: Some(hint.to_owned()) });
    }

    /// Where its id is written.
    fn place(&self, line: &Line) -> Place {
        let wanted = line.id.as_str();
        let is_id = |text: &str| {
            let text = text.split('#').next().unwrap_or_default();
            let mut words = text.split(['=', '"', '\'', ' ', '\t', '{', ',']).filter(|word| !word.is_empty());
            words.any(|word| word == "id") && words.next() == Some(wanted)
        };
        let at = self.text.lines().position(is_id);
        Place::File { file: self.file.to_owned(), line: at.map_or(1, |at| at + 1), column: 1 }
    }

    /// Is an hour of it at a price that anybody asks?
    fn price(&mut self, line: &Line) {
        let (of, _, most) = usual(line.meter);
        let nano = usual_nano(line);
        if most * NANO.unsigned_abs() < nano {
            let cost = nano / NANO.unsigned_abs();
            self.note(
                line,
                "implausible_price",
                &format!("{of} would cost {cost} credits"),
                "is the price for another unit, or per missing?",
            );
        } else if line.price.mantissa != 0 && nano <= 1 {
            let message = format!("{of} would cost a nano-credit at most");
            self.note(line, "implausible_price", &message, "is the price for another unit, or per too large?");
        }
    }

    fn selectors(&mut self, line: &Line, earlier: &[Line]) {
        let begins_as = |name: &str| GPU_NAMES.iter().any(|known| name.starts_with(known));
        let unknown = match &line.gpu_model {
            GpuSelector::Any => None,
            // The beginning of such a name is enough.
            GpuSelector::Prefix(name) => {
                (!begins_as(name) && !GPU_NAMES.iter().any(|known| known.starts_with(name.as_str()))).then_some(name.as_str())
            }
            GpuSelector::Exact(model) => (!begins_as(model.as_str())).then_some(model.as_str()),
        };
        if let Some(name) = unknown {
            let message = format!("no GPU is called {name:?}");
            self.note(line, "matches_nothing", &message, "write the model as nvidia-smi -L shows it, such as \"NVIDIA H100*\"");
        }
        if let GpuSelector::Exact(model) = &line.gpu_model
            && GPU_FAMILIES.contains(&model.as_str())
        {
            let message = format!("no GPU is called {:?} and no more: the driver adds its memory and form", model.as_str());
            self.note(line, "matches_nothing", &message, &format!("write \"{model}*\""));
        }
        let alike = |name: &LineId, other: &Line| {
            let other = other.name().filter(|other| *other != name && other.as_str().eq_ignore_ascii_case(name.as_str()));
            other.cloned()
        };
        if let Some((name, other)) = line.name().and_then(|name| Some((name, earlier.iter().find_map(|other| alike(name, other))?))) {
            let message = format!("{name} is another one than {other}");
            self.note(line, "matches_nothing", &message, "write it as the hook reports it, everywhere alike");
        }
        for (which, value) in &line.selected() {
            let alike = |other: &Line| {
                other.selected().get(which).filter(|other| *other != value && other.as_str().eq_ignore_ascii_case(value.as_str())).cloned()
            };
            if let Some(other) = earlier.iter().find_map(alike) {
                let message = format!("{} {value} is another one than {other}", which.name());
                self.note(line, "matches_nothing", &message, "write it as it is stated at the start, everywhere alike");
            }
        }
    }

    /// A meter of devices must price every device that a job may hold, or such a job is refused.
    fn devices(&mut self, line: &Line, card: &Card) {
        let first = card.lines.iter().find(|other| other.meter == line.meter).is_some_and(|other| other.id == line.id);
        if !line.meter.is_of_gpus() || line.meter == Meter::GpuHeld || !first {
            return;
        }
        let whole = |meter: Meter| card.lines.iter().any(|line| line.meter == meter && line.gpu_model == GpuSelector::Any);
        if !card.prices(Meter::GpuHeld) {
            let message = "no line prices a GPU that is held: a job with one is refused";
            self.note(line, "refuses_gpus", message, "add a gpu_held line; one that is free has price \"0\"");
        } else if whole(Meter::GpuHeld) && !whole(line.meter) {
            let message = format!("gpu_held has a line for every model, and {} has none: a job with another model is refused", line.meter);
            self.note(line, "gap_of_models", &message, "add a line of this meter without gpu_model; one that is free has price \"0\"");
        }
    }

    fn rules(&mut self, line: &Line, rules: &Rules) {
        let state = &rules.state;
        let factors = [state.running, state.frozen, state.paused];
        let free_at_last = Outcome::ALL.into_iter().all(|outcome| rules.factor(outcome) == Factor::FREE);
        if factors == [Factor::FREE; 3] || free_at_last {
            let message = "it never charges anything";
            self.note(line, "never_charges", message, "a price of \"0\" says so, or give a state or an outcome a factor above 0");
        }
        let outcomes = rules.outcome.values().copied();
        if let Some(factor) = factors.into_iter().chain(outcomes).find(|factor| FACTOR_MAX < *factor) {
            let message = format!("something of it is charged {factor} times");
            self.note(line, "implausible_quantity", &message, "factors are no percents: \"0.5\" is half of it");
        }
        let own_word = [Outcome::Failed, Outcome::Cancelled, Outcome::Unknown];
        if let Some(outcome) = own_word.into_iter().find(|outcome| rules.factor(*outcome) < rules.factor(Outcome::Completed)) {
            let message = format!("{outcome} costs less than completed, and a job can end itself so");
            self.note(line, "job_decides", &message, "make cheaper only what others decide: infrastructure, preempted, validation");
        }
        let timed = matches!(line.meter, Meter::WallTime | Meter::GpuHeld | Meter::GpuBusy | Meter::CpuTime);
        for (what, quantity) in [("increment", rules.increment), ("minimum", rules.minimum)] {
            if timed && TIME_MAX_NS < quantity {
                let days = quantity / (86_400 * 1_000_000_000);
                let message = format!("the {what} is {days} days");
                self.note(line, "implausible_quantity", &message, "it is written in the line's unit: \"1\" for an hour, not \"3600\"");
            }
        }
        if rules.minimum != 0 && rules.minimum <= rules.increment && rules.timing == Timing::Advance {
            let message = "the first increment is more than the minimum";
            self.note(line, "without_effect", message, "leave the minimum out, or make it greater");
        }
        let counts = rules.increment != 0 || rules.minimum != 0 || !rules.connect_fee.is_zero() || !rules.tiers.is_empty();
        if rules.anchor == Anchor::Job && !counts && line.round == super::Rounding::Down {
            let message = "it has nothing that counts over the job";
            self.note(line, "without_effect", message, "leave anchor out, or give it an increment, a minimum, a fee or tiers");
        }
        let mut below = line.price;
        for tier in &rules.tiers {
            if tier.price == below {
                let message = format!("a band has the price of the one below it, {below}");
                self.note(line, "without_effect", &message, "leave the band out, or give it its price");
            }
            below = tier.price;
        }
        if line.price.mantissa == 0 && (rules.increment != 0 || rules.minimum != 0) && rules.tiers.is_empty() {
            let message = "steps of nothing cost nothing";
            self.note(line, "without_effect", message, "give it a price, or leave increment and minimum out");
        }
    }

    /// A bid is compared with what a start costs at once.
    fn bids(&mut self, line: &Line, card: &Card) {
        let minds = line.rules.as_deref().is_some_and(|rules| rules.further.latest.over_bid.is_some());
        let asks = |line: &Line| {
            let rules = line.rules.as_deref();
            let at_once = |rules: &Rules| {
                let Rules { minimum, connect_fee, timing, ref further, .. } = *rules;
                minimum != 0 || !connect_fee.is_zero() || timing == Timing::Advance || further.latest.started.is_some()
            };
            line.meter == Meter::JobStarts || rules.is_some_and(at_once)
        };
        if minds && !card.lines.iter().any(asks) {
            let message = "no line of the card costs anything at the start, so that no bid is ever too low";
            self.note(line, "without_effect", message, "leave over_bid out, or charge in advance");
        }
    }

    /// A line of devices that select more, under which no job is charged that holds one of a model with a line of its own.
    fn shadowed(&mut self, line: &Line, card: &Card) {
        let selected = line.selected();
        let same = |other: &&Line| other.meter == line.meter && meet(other.span(), line.span());
        let before = |other: &&Line| {
            let theirs = other.selected();
            is_wider(&line.gpu_model, &other.gpu_model) && theirs.len() < selected.len() && compatible(&theirs, &selected)
        };
        let answers = |other: &Line| {
            let mut kin = card.lines.iter().filter(same);
            kin.any(|third| third.gpu_model == other.gpu_model && third.selected() == selected)
        };
        if !line.meter.is_of_gpus() {
            return;
        }
        if let Some(other) = card.lines.iter().filter(same).filter(before).find(|other| !answers(other)) {
            let message = format!(
                "a job of {} with a GPU of line {} is charged by that one: the model counts before what is selected",
                told(&selected),
                other.id
            );
            self.note(line, "ambiguous", &message, "add a line with that gpu_model and this select");
        }
    }

    /// A line for jobs that another meter has no line for: such a job is refused, so nobody is ever charged by it.
    fn refused(&mut self, line: &Line, card: &Card) {
        let selected = line.selected();
        let priced = |of: &Line| (of.meter, of.name().cloned());
        let mut others = card.lines.iter().filter(|other| !other.meter.is_of_gpus() && priced(other) != priced(line));
        let without = others.find(|other| {
            let mut of_it = card.lines.iter().filter(|third| priced(third) == priced(other));
            !of_it.any(|third| meet(third.span(), line.span()) && compatible(&third.selected(), &selected))
        });
        if let Some(other) = without.filter(|_| !selected.is_empty()) {
            let what = other.name().map_or_else(|| other.meter.to_string(), |name| format!("{} {name}", other.meter));
            let message = format!("a job of {} has no price for {what}, and is refused", told(&selected));
            self.note(
                line,
                "unreachable",
                &message,
                "add a line of that meter for such jobs, or one that selects nothing; what is free has price \"0\"",
            );
        }
    }

    /// Two lines that are for the same jobs.
    fn pair(&mut self, a: &Line, b: &Line) {
        self.memory_twice(a, b);
        self.units_apart(a, b);
        if a.meter != b.meter || a.gpu_model != b.gpu_model || a.name() != b.name() || !meet(a.span(), b.span()) {
            return;
        }
        let (one, two) = (a.selected(), b.selected());
        if one == two && !a.meter.is_of_gpus() {
            let message = format!("it is for the same jobs at the same time as line {}: both are charged", a.id);
            self.note(b, "overlap", &message, "end the first with effective_to where the second begins, or add the prices up in one line");
        } else if one != two && one.len() == two.len() && compatible(&one, &two) {
            let what = if a.meter.is_of_gpus() { "the first one is charged" } else { "both are charged" };
            let message = format!("a job can be one for line {} as well, and neither selects more: {what}", a.id);
            self.note(b, "ambiguous", &message, "add a line that selects both, or more to one of them");
        }
        let sizes = [a, b].map(|line| line.unit.to_string());
        let binary = |unit: &str| unit.contains("iB");
        if binary(&sizes[0]) != binary(&sizes[1]) && sizes.iter().all(|unit| unit.contains("B-")) {
            let message = format!("{} and {} are two kinds of unit for one meter", sizes[0], sizes[1]);
            self.note(b, "mixed_units", &message, "GB or GiB, but the same one throughout");
        }
    }

    /// What is charged to a cgroup holds its anonymous memory.
    fn memory_twice(&mut self, a: &Line, b: &Line) {
        let both = [a.meter, b.meter].contains(&Meter::MemoryCharged) && [a.meter, b.meter].contains(&Meter::MemoryAnon);
        let priced = a.price.mantissa != 0 && b.price.mantissa != 0;
        if both && priced && meet(a.span(), b.span()) && compatible(&a.selected(), &b.selected()) {
            let message = format!("anonymous memory is a part of what is charged to a job: lines {} and {} both charge it", a.id, b.id);
            self.note(b, "overlap", &message, "price one of the two meters");
        }
    }

    /// Two prices of one meter, one of them in seconds where hours are meant.
    fn units_apart(&mut self, a: &Line, b: &Line) {
        let (one, two) = (usual_nano(a), usual_nano(b));
        let (least, most) = (one.min(two), one.max(two));
        if a.meter == b.meter && a.name() == b.name() && a.unit != b.unit && 1 < least && least.saturating_mul(UNITS_APART_MAX) < most {
            let (of, ..) = usual(a.meter);
            let message = format!("{of} costs {} times as much by one of lines {} and {} as by the other", most / least, a.id, b.id);
            self.note(b, "implausible_price", &message, &format!("one is per {}, the other per {}: is that meant?", a.unit, b.unit));
        }
    }

    /// Holes between the lines that take turns in time, and lines whose time is over before the card's begins.
    fn dates(&mut self, line: &Line, card: &Card) {
        let (from, to) = line.span();
        if to <= card.effective_from {
            let message = format!("it ended at {}, before the card begins", rfc3339(to));
            self.note(line, "unreachable", &message, "leave the line out");
            return;
        }
        let kin = || {
            let same = |other: &&Line| {
                (other.meter, &other.gpu_model, other.name()) == (line.meter, &line.gpu_model, line.name()) && other.id != line.id
            };
            card.lines
                .iter()
                .filter(same)
                .filter(|other| other.selected().iter().all(|(which, value)| line.selected().get(which) == Some(value)))
        };
        let holds = |at: Wall| kin().map(Line::span).any(|(from, to)| from <= at && at < to);
        if to != Wall(u64::MAX) && !holds(to) {
            let message = format!("from {} on nothing takes its place", rfc3339(to));
            self.note(line, "gap", &message, "add a line with that effective_from, or leave effective_to out");
        }
        if card.effective_from < from && !holds(Wall(from.0 - 1)) {
            let before = kin().map(|other| other.span().1).any(|to| to < from);
            if !before {
                let message = format!("before {} nothing has its place", rfc3339(from));
                self.note(line, "gap", &message, "add a line up to then, or leave effective_from out");
            }
        }
    }
}
