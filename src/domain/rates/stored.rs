//! How a line's rules stand in the journal. The first form is that of an optional: 0 for none, 1 and the rules. Rules that say more have
//! the number 2, and behind them what they say more; those that say still more have the number 3, and that behind them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::rules::{Further, Latest, Rules};

#[derive(Serialize)]
enum Writing<'a> {
    Plain,
    First(&'a Rules),
    Second(&'a Rules, &'a Further),
    Third(&'a Rules, &'a Further, &'a Latest),
}

#[derive(Deserialize)]
enum Reading {
    Plain,
    First(Box<Rules>),
    Second(Box<Rules>, Further),
    Third(Box<Rules>, Further, Latest),
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
pub(super) fn serialize<S: Serializer>(rules: &Option<Box<Rules>>, serializer: S) -> Result<S::Ok, S::Error> {
    match rules.as_deref() {
        None => Writing::Plain,
        Some(rules) if rules.further == Further::default() => Writing::First(rules),
        Some(rules) if rules.further.latest == Latest::default() => Writing::Second(rules, &rules.further),
        Some(rules) => Writing::Third(rules, &rules.further, &rules.further.latest),
    }
    .serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Rules>>, D::Error> {
    Ok(match Reading::deserialize(deserializer)? {
        Reading::Plain => None,
        Reading::First(rules) => Some(rules),
        Reading::Second(mut rules, further) => {
            rules.further = further;
            Some(rules)
        }
        Reading::Third(mut rules, mut further, latest) => {
            further.latest = latest;
            rules.further = further;
            Some(rules)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Card, Line};

    fn line(more: &str) -> Line {
        let text =
            format!("card = \"c\"\nversion = 1\neffective_from = \"2026-01-01T00:00:00Z\"\n[[line]]\nid = \"a\"\nprice = \"1\"\n{more}");
        Card::parse(&text, "c.toml").unwrap().lines.remove(0)
    }

    #[test]
    fn rules_that_the_first_form_knows_are_written_in_it() {
        let plain = line("meter = \"wall_time\"\nunit = \"hour\"");
        let ruled = line("meter = \"wall_time\"\nunit = \"hour\"\nincrement = \"1\"");
        let said = line("meter = \"counter\"\nname = \"tokens\"\nunit = \"count\"\ndiscount = \"0.25\"");
        let latest = line("meter = \"storage\"\nunit = \"GB-month\"\nmonth = \"calendar\"\nstarted = \"day\"\nover_bid = \"freeze\"");
        let first = postcard::to_extend(&ruled.rules.as_deref(), Vec::new()).unwrap();
        assert_eq!(first[0], 1, "an optional that is there");
        for (line, form) in [(&plain, 0), (&ruled, 1), (&said, 2), (&latest, 3)] {
            let bytes = postcard::to_extend(line, Vec::new()).unwrap();
            assert_eq!(postcard::from_bytes::<Line>(&bytes).as_ref(), Ok(line));
            let place = bytes.len() - if form == 1 { first.len() } else { 1 };
            if form < 2 {
                assert_eq!(bytes[place], form);
            }
            if form == 1 {
                assert_eq!(bytes[place..], first);
            }
        }
    }
}
