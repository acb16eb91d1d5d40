use proptest::prelude::*;

use super::*;
use crate::domain::id::JobName;
use crate::domain::money::Credits;
use crate::domain::time::Nanos;

fn printed<T: fmt::Debug>(result: Result<T, Vec<Mistake>>) -> String {
    let lines: Vec<String> = result.unwrap_err().iter().map(|mistake| format!("[{}] {mistake}", mistake.code)).collect();
    lines.join("\n")
}

fn read_all_kinds(table: &Table<'_>) -> Option<()> {
    let name = table.field("name").name::<JobName>().required();
    let word = table.field("word").word(&[("red", 1), ("green", 2)]).or(1);
    let length = table.field("length").duration(Nanos::from_secs(1)..=Nanos::from_secs(3_600)).optional();
    let seconds = table.field("wait_s").seconds(1..=60).optional();
    let amount = table.field("amount").amount(Credits::from_nano(i128::MAX)).optional();
    let price = table.field("price").decimal().optional();
    let when = table.field("when").instant().optional();
    let path = table.field("path").absolute_path().optional();
    let flag = table.field("flag").boolean().optional();
    let set = table.field("set").set(3, |item| item.integer(0..=9_u32).required()).optional();
    let inner = table.field("inner").table(|inner| inner.field("count").integer(-5..=5_i32).required()).optional();
    let rows = table.field("row").list(4, |row| row.table(|row| row.field("id").text(8).required()).required()).optional();
    let map = table.field("map").map(3, |_, field| field.text(8).required()).optional();
    let _ = (name?, word?, length?, seconds?, amount?, price?, when?, path?, flag?, set?, inner?, rows?, map?);
    Some(())
}

const GOOD_TOML: &str = r#"
name = "job-1"
word = "green"
length = "5m"
wait_s = 30
amount = "1.5"
price = "0.04"
when = 2026-11-01T00:00:00Z
path = "/a/b"
flag = true
set = [1, 2, 3]
[inner]
count = -5
[[row]]
id = "a"
[map]
any = "thing"
"#;

const GOOD_JSON: &str = r#"{"name":"job-1","word":"green","length":"5m","wait_s":30,"amount":"1.5","price":"0.04",
"when":"2026-11-01T01:00:00+01:00","path":"/a/b","flag":true,"set":[1,2,3],"inner":{"count":-5},"row":[{"id":"a"}],"map":{"any":"thing"}}"#;

#[test]
fn a_table_without_mistakes_is_read() {
    assert_eq!(read_toml(GOOD_TOML, "a.toml", 4_096, read_all_kinds), Ok(()));
    assert_eq!(read_json(GOOD_JSON, 4_096, read_all_kinds), Ok(()));
    assert_eq!(read_json(r#"{"name":"x","wait_s":null}"#, 4_096, read_all_kinds), Ok(()), "null is nothing written");
}

#[test]
fn each_kind_of_mistake_in_a_file_has_its_line_and_column() {
    let text = r#"nam = "a b"
word = "gren"
length = "5 minutes"
wait_s = "30"
amount = 1.5
price = "0,04"
when = "2026-11-01T00:00:00"
path = "a/../b"
flag = 1
set = [1, 10, 1]
[inner]
count = 6
cuont = 6
[[row]]
id = ""
[map]
any = 1
"#;
    insta::assert_snapshot!(printed(read_toml(text, "a.toml", 4_096, read_all_kinds)));
}

#[test]
fn each_kind_of_mistake_in_a_body_has_its_pointer() {
    let text = r#"{"name":"-x","name":"y","a/b~c":1,"word":"blue","length":"2h","wait_s":0,"amount":"-1","price":"1e9","when":"1969-01-01T00:00:00Z",
        "path":"/a/../b","flag":"yes","set":[1,2,3,4],"inner":[],"row":[{"id":"a","x":1},2],"map":{"a":"1","b":"2","c":"3","d":"4"}}"#;
    insta::assert_snapshot!(printed(read_json(text, 4_096, read_all_kinds)));
}

#[test]
fn a_line_that_breaks_the_grammar_is_one_mistake_and_the_rest_is_read() {
    let text = "name = \"x\"\nword = \nflag = tru\nlength = \"1d\"\nflag = true\nset = [1,\n";
    insta::assert_snapshot!(printed(read_toml(text, "a.toml", 4_096, read_all_kinds)), @r#"
    [syntax] a.toml:2:8: string values must be quoted, expected literal string (hint: a line is key = value, and text stands in quotes)
    [syntax] a.toml:3:8: invalid boolean, expected `true` (hint: a line is key = value, and text stands in quotes)
    [out_of_range] a.toml:4:10: length: 86400.000 s is out of range 1.000 s to 3600.000 s (hint: from 1.000 s to 3600.000 s)
    [syntax] a.toml:5:1: duplicate key (hint: a line is key = value, and text stands in quotes)
    [syntax] a.toml:6:10: unclosed array, expected `]` (hint: a line is key = value, and text stands in quotes)
    "#);
}

#[test]
fn a_body_that_is_no_json_or_no_object_or_too_long_is_refused() {
    let code = |text: &str| read_json(text, 64, read_all_kinds).unwrap_err()[0].code;
    assert_eq!(code("{\"name\":"), "syntax");
    assert_eq!(code("[1]"), "wrong_type");
    assert_eq!(code(&" ".repeat(65)), "too_large");
    let deep = "[".repeat(2_000);
    assert_eq!(read_json(&deep, 4_096, read_all_kinds).unwrap_err()[0].code, "syntax");
}

#[test]
fn no_more_than_a_hundred_mistakes_are_listed_and_that_is_said() {
    let lines: Vec<String> = (0..500).map(|n| format!("k{n} = 1\n")).collect();
    let text = lines.concat();
    let mistakes = read_toml(&text, "a.toml", 1 << 16, read_all_kinds).unwrap_err();
    assert_eq!(mistakes.len(), MISTAKES_MAX + 1);
    assert_eq!(mistakes.last().map(|last| last.code), Some("too_many_mistakes"));
}

#[test]
fn a_column_counts_characters_not_bytes() {
    let text = "map = {\"é\" = 1}\nname = \"x\"\n";
    let mistakes = read_toml(text, "a.toml", 4_096, read_all_kinds).unwrap_err();
    assert_eq!(mistakes[0].place, Place::File { file: "a.toml".to_owned(), line: 1, column: 14 });
}

#[test]
fn a_mistake_in_json_has_a_code_a_pointer_a_message_and_a_hint() {
    let mistakes = read_json(r#"{"name":"x","inner":{"count":9}}"#, 4_096, read_all_kinds).unwrap_err();
    let expected = r#"[{"code":"out_of_range","place":"/inner/count","message":"9 is out of range -5..=5","hint":"an integer from -5 to 5, without quotes"}]"#;
    assert_eq!(serde_json::to_string(&mistakes).unwrap(), expected);
}

/// A valid text with a few of its bytes replaced, removed or doubled.
fn mutated(text: &'static str) -> impl Strategy<Value = String> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
    prop::collection::vec(change, 0..12).prop_map(move |changes| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = read_toml(&text, "a.toml", 4_096, read_all_kinds);
        let _ = read_json(&text, 4_096, read_all_kinds);
    }

    #[test]
    fn no_change_to_a_good_file_makes_the_reader_panic(text in mutated(GOOD_TOML)) {
        if let Err(mistakes) = read_toml(&text, "a.toml", 4_096, read_all_kinds) {
            prop_assert!(!mistakes.is_empty());
        }
    }

    #[test]
    fn no_change_to_a_good_body_makes_the_reader_panic(text in mutated(GOOD_JSON)) {
        if let Err(mistakes) = read_json(&text, 4_096, read_all_kinds) {
            prop_assert!(!mistakes.is_empty());
        }
    }

    #[test]
    fn a_length_of_time_reads_in_every_unit(number in 0..1_000_000_u64, unit in 0..5_usize) {
        let (name, millis) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)][unit];
        let body = format!(r#"{{"length":"{number}{name}"}}"#);
        let everything = Nanos(0)..=Nanos(u64::MAX);
        let read = read_json(&body, 4_096, |table| table.field("length").duration(everything).required());
        if let Some(length) = number.checked_mul(millis * 1_000_000) {
            prop_assert_eq!(read, Ok(Nanos(length)));
        } else {
            prop_assert_eq!(read.unwrap_err()[0].code, "out_of_range");
        }
    }
}
