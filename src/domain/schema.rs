//! The JSON schemas of types that are text on every wire: amounts, names, ids.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::enforcement::Enforcement;
use super::id::{AccountId, Attempt, BootId, Digest, Epoch, JobName, NodeId, PaymentId};
use super::ladder::{Then, Thresholds, Victims};
use super::ledger::{Ratio, UnitName};
use super::money::Credits;
use super::policy::{AccountPolicy, OnExhaustion, StartPredicted, Unreachable};
use super::time::Nanos;

macro_rules! text {
    ($type:ty, $name:literal, $pattern:literal, $description:literal) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $description })
            }
        }
    };
}

text!(Credits, "Credits", r"^-?[0-9]+(\.[0-9]{1,9})?$", "An amount in credits, as a decimal number in a string: exact to a nano-credit.");
text!(AccountId, "AccountId", r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$", "Who pays.");
text!(NodeId, "NodeId", r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$", "A node.");
text!(JobName, "JobName", r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$", "What a job is called.");
text!(PaymentId, "PaymentId", r"^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}$", "A payment: of one name, one is booked.");
text!(Epoch, "Epoch", "^[0-9a-f]{32}$", "One unbroken spending life of one agent: 128 random bits.");
text!(BootId, "BootId", "^[0-9a-f]{32}$", "The kernel's boot_id.");
text!(UnitName, "UnitName", r"^.{1,32}$", "A unit in which amounts are shown, such as USD.");
text!(Ratio, "Ratio", r"^[0-9]+(\.[0-9]+)?(/[0-9]+)?$", "An exact ratio, as a decimal number or a fraction.");
text!(Digest, "Digest", "^[0-9a-f]{64}$", "SHA-256.");

impl JsonSchema for Attempt {
    fn schema_name() -> Cow<'static, str> {
        "Attempt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "description": "A node's own number for one attempt of one job." })
    }
}

/// As its text is; in the journal it has another form, which a derived schema would follow.
impl JsonSchema for AccountPolicy {
    fn schema_name() -> Cow<'static, str> {
        "AccountPolicy".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "What the account's owner wants done; kept by the authority, followed by the node.",
            "properties": {
                "on_exhaustion": generator.subschema_for::<OnExhaustion>(),
                "grace_ns": generator.subschema_for::<Nanos>(),
                "warn_before_ns": generator.subschema_for::<Thresholds>(),
                "start_threshold": generator.subschema_for::<Credits>(),
                "start_predicted": generator.subschema_for::<StartPredicted>(),
                "enforcement": generator.subschema_for::<Enforcement>(),
                "freeze_ttl_ns": generator.subschema_for::<Option<Nanos>>(),
                "then": generator.subschema_for::<Then>(),
                "victims": generator.subschema_for::<Victims>(),
                "victims_before_ns": generator.subschema_for::<Nanos>(),
                "start_funded_ns": generator.subschema_for::<Option<Nanos>>(),
                "unreachable": generator.subschema_for::<Unreachable>(),
            },
            "required": [
                "on_exhaustion", "grace_ns", "warn_before_ns", "start_threshold", "start_predicted", "enforcement", "then", "victims",
                "victims_before_ns"
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_an_amount_is_what_is_written() {
        let pattern = serde_json::to_value(schemars::schema_for!(Credits)).unwrap()["pattern"].as_str().unwrap().to_owned();
        assert_eq!(pattern, r"^-?[0-9]+(\.[0-9]{1,9})?$");
        for nano in [0, 1, -1, 1_500_000_000, i128::MAX] {
            let text = serde_json::to_value(Credits::from_nano(nano)).unwrap().as_str().unwrap().to_owned();
            let digits = text.trim_start_matches('-');
            let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
            assert!(!whole.is_empty() && (1..=9).contains(&fraction.len()), "{text}");
            assert!([whole, fraction].concat().bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        }
    }
}
