//! The configuration, the rate card, and the users and groups that they name.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Findings;
use crate::domain::id::Uid;
use crate::domain::rates::Card;
use crate::domain::receipt::rfc3339;
use crate::node::clock;
use crate::node::config::{Config, ConfigFailure};

/// The configuration, or the defaults where there is none that can be read.
pub(super) fn look(path: &Path, findings: &mut Findings) -> Config {
    exposed(path, findings);
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(ConfigFailure::Mistakes(mistakes)) => {
            for mistake in mistakes {
                findings.error(
                    "config_mistake",
                    mistake.to_string(),
                    "correct it; until then the agent does not start, and does not reload",
                );
            }
            return Config::default();
        }
        Err(unreadable) => {
            let remedy = format!("make one: meterd --print-default-config > {}", path.display());
            findings.error("config_unreadable", unreadable.to_string(), remedy);
            return Config::default();
        }
    };
    card(&config, findings);
    users(&config, findings);
    config
}

/// Whoever can write to these files sets prices and who may do what.
fn exposed(path: &Path, findings: &mut Findings) {
    if let Ok(found) = std::fs::metadata(path)
        && found.mode() & 0o022 != 0
    {
        let finding = format!("{} can be written by others than its owner (mode {:o})", path.display(), found.mode() & 0o7777);
        findings.error("file_exposed", finding, format!("chmod go-w {}", path.display()));
    }
}

fn card(config: &Config, findings: &mut Findings) {
    let path = &config.rate_card;
    exposed(path, findings);
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let finding = format!("the rate card {} cannot be read: {error}", path.display());
            return findings.error("rate_card_unreadable", finding, "install one there; /usr/share/meterd/ratecards has an example");
        }
    };
    match Card::parse(&text, &path.display().to_string()) {
        Ok(card) if clock::now().wall < card.effective_from => {
            let finding =
                format!("the rate card {} version {} comes into force at {}", card.name, card.version, rfc3339(card.effective_from));
            findings.warning("rate_card_ahead", finding, "if no other card is in force by then, nothing is started before that");
        }
        Ok(_) => {}
        Err(mistakes) => {
            for mistake in mistakes {
                findings.error("rate_card_mistake", mistake.to_string(), "correct it; meterctl card check names what is left");
            }
        }
    }
}

fn users(config: &Config, findings: &mut Findings) {
    let uid_of = |name: &str| uzers::get_user_by_name(name).map(|user| Uid(user.uid()));
    for unknown in config.access.by_uid(uid_of).err().unwrap_or_default() {
        findings.warning("user_unknown", unknown.to_string(), "correct the name, or leave it out: nobody may use its accounts by it");
    }
    let group = &config.access.operators_group;
    if uzers::get_group_by_name(group).is_none() {
        let finding = format!("there is no group {group}: only root and the agent's user are operators");
        findings.advice("no_operators_group", finding, format!("groupadd --system {group}, or install meterd.sysusers"));
    }
}
