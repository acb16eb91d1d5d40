//! The rules that no compiler checks: what may stand where in this repository, and that its documents are true.
//! Only tracked files are read. The second half plants a breach of every rule: each must be found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines.
const LINES_MAX: usize = 800;

/// What the top level may hold.
const TOP_LEVEL: [&str; 19] = [
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "clippy.toml",
    "docs",
    "fuzz",
    "packaging",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "systemd",
    "tests",
    ".gitattributes",
    ".editorconfig",
];

/// The packages that the project is to build on, as their code is named.
const FIXED_PACKAGES: [&str; 9] =
    ["tokio", "nvml_wrapper", "sysinfo", "procfs", "cgroups_rs", "reqwest", "serde", "tracing", "signal_hook"];

/// What the pure core knows nothing of: input and output, clocks, threads, logs, floats.
const IMPURE: [&str; 25] = [
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::time",
    "std::sync::mpsc",
    "std::os",
    "SystemTime",
    "f32",
    "f64",
    "println!",
    "eprintln!",
    "tokio",
    "tracing",
    "rusqlite",
    "rustix",
    "procfs",
    "sysinfo",
    "nvml_wrapper",
    "cgroups_rs",
    "crossbeam_channel",
    "reqwest",
    "axum",
];

/// Where one of these words stands all the same, and why.
const PURE_ENOUGH: [(&str, &str); 1] = [
    ("src/domain/form/node.rs", "f64"), // a JSON reader hands fractions over as f64; it is made text at once, to be refused
];

/// A text file of the repository.
#[derive(Clone)]
struct Source {
    path: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Paths of the tracked files; where there is no repository (or it is another user's), of all files but hidden ones and `target`.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    if let Ok(output) = listed
        && output.status.success()
        && !output.stdout.is_empty()
    {
        let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
        let there = |path: &&str| !path.is_empty() && root().join(path).exists();
        return text.split('\0').filter(there).map(str::to_owned).collect();
    }
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    paths
}

fn walk(dir: &Path, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).expect("the tree can be read") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let skipped = name == "target" || name == ".git";
        if path.is_dir() && !skipped {
            walk(&path, paths);
        } else if path.is_file() {
            paths.push(path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned());
        }
    }
}

/// The tracked text files.
fn sources() -> Vec<Source> {
    let read = |path: String| std::fs::read_to_string(root().join(&path)).ok().map(|text| Source { path, text });
    let sources: Vec<Source> = tracked().into_iter().filter_map(read).collect();
    assert!(40 < sources.len(), "only {} files are seen: this test looks at the wrong place", sources.len());
    sources
}

fn source(path: &str) -> Source {
    let found = sources().into_iter().find(|source| source.path == path);
    found.unwrap_or_else(|| panic!("{path} is not there"))
}

impl Source {
    fn is_rust(&self) -> bool {
        self.has_ending("rs")
    }

    fn is_document(&self) -> bool {
        self.has_ending("md")
    }

    fn has_ending(&self, wanted: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|ending| ending == wanted)
    }

    /// Everything but comments and tests, line by line with its number.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = if self.path.ends_with("tests.rs") { Some(0) } else { self.text.find("#[cfg(test)]\nmod tests {") };
        let product = &self.text[..tests.unwrap_or(self.text.len())];
        product.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")).map(|(index, line)| (index + 1, line))
    }

    fn breach(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Does the word stand in the line, not as a part of a longer one?
fn holds_word(line: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(inside);
        let after = line[at + word.len()..].chars().next().is_some_and(inside);
        !before && !after
    })
}

fn none(breaches: &[String]) {
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

// The rules: each gives its breaches.

fn impurities(source: &Source) -> Vec<String> {
    if !source.path.starts_with("src/domain/") || !source.is_rust() {
        return Vec::new();
    }
    let allowed = |word: &str| PURE_ENOUGH.contains(&(source.path.as_str(), word));
    let of_line = |(line, text): (usize, &str)| {
        let found: Vec<&str> = IMPURE.into_iter().filter(|word| holds_word(text, word) && !allowed(word)).collect();
        found.into_iter().map(move |word| (line, word)).collect::<Vec<_>>()
    };
    let found: Vec<(usize, &str)> = source.code().flat_map(of_line).collect();
    found.into_iter().map(|(line, word)| source.breach(line, &format!("{word} in the pure core"))).collect()
}

fn overlong(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (source.is_rust() && LINES_MAX < lines).then(|| source.breach(lines, &format!("more than {LINES_MAX} lines")))
}

/// Words that promise work for later or switch a check off. Written in halves, so that this file holds none of them.
fn loose_ends(source: &Source) -> Vec<String> {
    let everywhere = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let rust = [
        concat!("#[al", "low"),
        concat!("#![al", "low"),
        concat!("#[ig", "nore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
    ];
    let mut breaches = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let loose = everywhere.into_iter().filter(|word| holds_word(line, word));
        let off = rust.into_iter().filter(|word| source.is_rust() && line.contains(word) && !is_run_by_another(source, line));
        breaches.extend(loose.chain(off).map(|word| source.breach(index + 1, word)));
    }
    breaches
}

/// A test that only another one starts, in a process of its own, and names it: `= "run by NAME"`.
fn is_run_by_another(source: &Source, line: &str) -> bool {
    let runner = line.split_once("= \"run by ").and_then(|(_, rest)| rest.split_once("\"]"));
    runner.is_some_and(|(name, _)| source.text.contains(&format!("fn {name}(")))
}

/// Paths that exist on one machine only.
fn machine_paths(source: &Source) -> Vec<String> {
    let paths = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tmp/", "wt"), concat!("/wo", "rk/"), concat!("/Us", "ers/")];
    let of_line = |(index, line): (usize, &str)| {
        let found = paths.into_iter().find(|path| line.contains(path))?;
        Some(source.breach(index + 1, &format!("{found} is a path of one machine")))
    };
    source.text.lines().enumerate().filter_map(of_line).collect()
}

fn undescribed(source: &Source) -> Option<String> {
    let product = source.path.starts_with("src/") && source.is_rust() && !source.path.ends_with("tests.rs");
    (product && !source.text.starts_with("//!")).then(|| source.breach(1, "does not begin by saying what it is for (//!)"))
}

/// Links of a document to files and headings that are not there.
fn dead_links(document: &Source, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    for (index, line) in document.text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            if target.starts_with("http") || target.is_empty() {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&document.path).parent().unwrap_or(Path::new(""));
            let path = plain(&folder.join(file));
            if !file.is_empty() && !exists(&path) {
                breaches.push(document.breach(index + 1, &format!("{target} leads nowhere")));
            }
            if file.is_empty() && !headings(&document.text).contains(heading) {
                breaches.push(document.breach(index + 1, &format!("no heading is called #{heading}")));
            }
        }
    }
    breaches
}

/// A path without `..`.
fn plain(path: &Path) -> String {
    let mut steps: Vec<String> = Vec::new();
    for step in path.components() {
        match step.as_os_str().to_string_lossy().as_ref() {
            ".." => drop(steps.pop()),
            "." => {}
            step => steps.push(step.to_owned()),
        }
    }
    steps.join("/")
}

/// The anchors that a document's headings make.
fn headings(text: &str) -> BTreeSet<String> {
    let anchor = |title: &str| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// The tests that a text cites, as `path.rs::name` between backticks.
fn cited_tests(text: &str) -> Vec<(String, String)> {
    let spans = text.split('`').skip(1).step_by(2);
    let cited = spans.filter_map(|span| span.split_once(".rs::")).filter(|(path, _)| !path.contains(char::is_whitespace));
    cited.map(|(path, name)| (format!("{path}.rs"), name.to_owned())).collect()
}

fn uncovered_citations(document: &Source, all: &[Source]) -> Vec<String> {
    let stands = |path: &str, name: &str| {
        let test = format!("fn {name}(");
        all.iter().any(|source| source.path == path && source.text.contains(&test))
    };
    let cited = cited_tests(&document.text).into_iter().filter(|(path, name)| !stands(path, name));
    cited.map(|(path, name)| format!("{}: cites {path}::{name}, which is not there", document.path)).collect()
}

/// The numbered guarantees of the README: number and text.
fn guarantees(readme: &str) -> Vec<(usize, String)> {
    let section = readme.split("\n## Guarantees\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut found: Vec<(usize, String)> = Vec::new();
    for line in section.lines() {
        let number = line.split_once(". ").and_then(|(number, _)| number.parse().ok());
        match (number, found.last_mut()) {
            (Some(number), _) => found.push((number, line.to_owned())),
            (None, Some((_, text))) => {
                text.push('\n');
                text.push_str(line);
            }
            (None, None) => {}
        }
    }
    found
}

/// The commands of the README's section of that name.
fn commands(readme: &str) -> Vec<&str> {
    let section = readme.split("\n## The two commands\n").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().map(|line| line.trim().trim_start_matches("$ "));
    lines.filter(|line| line.starts_with("cargo ")).map(|line| line.split(" #").next().unwrap_or(line).trim()).collect()
}

/// The names of the packages of a section of Cargo.toml.
fn packages<'t>(manifest: &'t str, section: &str) -> Vec<&'t str> {
    let text = manifest.split(&format!("\n[{section}]\n")).nth(1).unwrap_or_default();
    let text = text.split("\n[").next().unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).filter(|name| !name.starts_with('#')).collect()
}

/// Where a package must be used: the product's in the product, the tests' anywhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Users {
    Product,
    Anything,
}

fn unused(packages: &[&str], sources: &[Source], place: Users) -> Vec<String> {
    let named = |package: &str| {
        let name = package.replace('-', "_");
        let forms = [format!("{name}::"), format!("use {name};"), format!("{name} as ")];
        let names_it = |line: &str| forms.iter().any(|form| line.contains(form.as_str()));
        let names_it_there = |source: &Source| match place {
            Users::Product => source.path.starts_with("src/") && source.code().any(|(_, line)| names_it(line)),
            Users::Anything => source.text.lines().any(|line| !line.trim_start().starts_with("//") && names_it(line)),
        };
        sources.iter().filter(|source| source.is_rust()).any(names_it_there)
    };
    packages.iter().filter(|package| !named(package)).map(|package| format!("package {package} is not used")).collect()
}

/// The keys of the default configuration, those in comments included.
fn configuration_keys(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| line.trim_start_matches('#'));
    let keys = lines.filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    keys.filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')).collect()
}

// The repository keeps them.

#[test]
fn the_domain_is_pure() {
    none(&sources().iter().flat_map(impurities).collect::<Vec<_>>());
}

#[test]
fn no_source_file_is_longer_than_800_lines() {
    none(&sources().iter().filter_map(overlong).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later_and_no_check_is_switched_off() {
    none(&sources().iter().flat_map(loose_ends).collect::<Vec<_>>());
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    none(&sources().iter().flat_map(machine_paths).collect::<Vec<_>>());
}

#[test]
fn every_source_file_says_what_it_is_for() {
    none(&sources().iter().filter_map(undescribed).collect::<Vec<_>>());
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    let paths = tracked();
    let exists = |wanted: &str| paths.iter().any(|path| path == wanted || path.starts_with(&format!("{}/", wanted.trim_end_matches('/'))));
    let all = sources();
    none(&all.iter().filter(|source| source.is_document()).flat_map(|document| dead_links(document, exists)).collect::<Vec<_>>());
}

#[test]
fn every_guarantee_is_shown_by_tests_that_are_there() {
    let readme = source("README.md");
    let all = sources();
    none(&all.iter().filter(|source| source.is_document()).flat_map(|document| uncovered_citations(document, &all)).collect::<Vec<_>>());
    let numbers: Vec<usize> = guarantees(&readme.text).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=11).collect::<Vec<_>>(), "the guarantees are numbered from 1 to 11");
    let bare = guarantees(&readme.text).into_iter().filter(|(_, text)| cited_tests(text).is_empty());
    none(&bare.map(|(number, _)| format!("guarantee {number} cites no test")).collect::<Vec<_>>());
}

#[test]
fn the_readmes_commands_are_run_by_ci() {
    let (readme, ci) = (source("README.md"), source(".ci/run"));
    let commands = commands(&readme.text);
    assert_eq!(commands.len(), 2, "two commands: {commands:?}");
    none(
        &commands
            .into_iter()
            .filter(|command| !ci.text.contains(command))
            .map(|command| format!(".ci/run does not run {command}"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn every_package_is_used_and_the_fixed_ones_are_among_them() {
    let (manifest, all) = (source("Cargo.toml"), sources());
    let product = packages(&manifest.text, "dependencies");
    let mut breaches = unused(&product, &all, Users::Product);
    breaches.extend(unused(&packages(&manifest.text, "dev-dependencies"), &all, Users::Anything));
    breaches.extend(
        FIXED_PACKAGES
            .iter()
            .filter(|fixed| !product.contains(&fixed.replace('_', "-").as_str()))
            .map(|fixed| format!("{fixed} is missing")),
    );
    none(&breaches);
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    let top: BTreeSet<String> = tracked().iter().filter_map(|path| path.split('/').next().map(str::to_owned)).collect();
    none(
        &top.into_iter()
            .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
            .map(|name| format!("{name} at the top level"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_operators_guide_names_every_configuration_key() {
    let (defaults, guide) = (source("packaging/meterd.toml"), source("docs/operator.md"));
    let keys = configuration_keys(&defaults.text);
    assert!(15 < keys.len(), "only {keys:?}");
    let named = |key: &str| guide.text.contains(&format!("`{key}`")) || guide.text.contains(&format!("`{key} = "));
    let unnamed = keys.into_iter().filter(|key| !named(key));
    none(&unnamed.map(|key| format!("docs/operator.md does not name `{key}`")).collect::<Vec<_>>());
}

// Each rule finds its breach.

fn planted(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn a_clock_or_a_float_in_the_domain_is_found() {
    assert_eq!(impurities(&planted("src/domain/a.rs", "//! A.\nuse std::time::Instant;\nfn f(x: f64) {}\n")).len(), 2);
    assert!(impurities(&planted("src/domain/a.rs", "//! f64 in words\nfn visit_f64() {}\n#[cfg(test)]\nmod tests {\n f64 }")).is_empty());
    assert!(impurities(&planted("src/node/a.rs", "use std::fs;")).is_empty());
}

#[test]
fn a_long_file_a_loose_end_and_a_machines_path_are_found() {
    assert!(overlong(&planted("src/a.rs", &"x\n".repeat(LINES_MAX + 1))).is_some());
    assert_eq!(loose_ends(&planted("a.md", concat!("later: TO", "DO\nTO", "DOS\n"))).len(), 1);
    let child = concat!("#[ig", "nore = \"run by a_test\"]\nfn child() {}\n");
    assert_eq!(loose_ends(&planted("a.rs", child)).len(), 1);
    assert!(loose_ends(&planted("a.rs", &format!("{child}fn a_test() {{}}"))).is_empty());
    assert_eq!(loose_ends(&planted("a.rs", concat!("#[al", "low(dead_code)]\n#[ig", "nore]\n"))).len(), 2);
    assert_eq!(machine_paths(&planted("a.rs", concat!("\"/ho", "me/me/x\"\n"))).len(), 1);
    assert!(undescribed(&planted("src/a.rs", "use x;")).is_some());
}

#[test]
fn a_dead_link_and_a_missing_heading_are_found() {
    let document = planted("docs/a.md", "# One two\n[x](b.md) [y](../c.md) [z](#one-two) [w](#three) [v](https://x)\n");
    assert_eq!(dead_links(&document, |path| path == "c.md").len(), 2);
}

#[test]
fn a_cited_test_that_is_not_there_is_found() {
    let code = planted("src/a.rs", "fn it_holds() {}");
    let readme = planted("README.md", "\n## Guarantees\n\n1. **A** `src/a.rs::it_holds`\n   and more\n2. **B** `src/a.rs::it_does_not`\n");
    assert_eq!(uncovered_citations(&readme, &[code]).len(), 1);
    assert_eq!(guarantees(&readme.text).len(), 2);
    assert!(guarantees(&readme.text)[0].1.contains("and more"));
}

/// Packages of the manifest that the fuzz targets' own lock file does not name: they are then built with `--locked` no more.
fn not_locked<'m>(manifest: &'m str, lock: &str) -> Vec<&'m str> {
    let product = lock.split("[[package]]").find(|package| package.contains("name = \"meterd\"\n")).unwrap_or_default();
    let named = |name: &str| product.contains(&format!(" \"{name}\"")) || product.contains(&format!(" \"{name} "));
    let of_machine = "target.'cfg(target_arch = \"x86_64\")'.dependencies";
    let all = packages(manifest, "dependencies").into_iter().chain(packages(manifest, of_machine));
    all.filter(|name| !named(name)).collect()
}

#[test]
fn the_fuzz_targets_are_locked_to_what_the_product_needs() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let manifest = read("Cargo.toml");
    let missing = not_locked(&manifest, &read("tests/fuzz/Cargo.lock"));
    assert!(missing.is_empty(), "cd tests/fuzz && cargo metadata: its lock lacks {missing:?}");
}

#[test]
fn a_package_that_the_fuzz_targets_do_not_lock_is_found() {
    let manifest = "x\n[dependencies]\none = \"1\"\ntwo = \"1\"\nthree = \"1\"\n";
    let lock = "[[package]]\nname = \"meterd\"\ndependencies = [\n \"one\",\n \"two 1.0.0\",\n]\n[[package]]\nname = \"three\"\n";
    assert_eq!(not_locked(manifest, lock), ["three"]);
}

#[test]
fn an_unused_package_is_found() {
    let manifest = "x\n[dependencies]\none-two = \"1\"\nthree = { version = \"1\" }\n\n[dev-dependencies]\nfour = \"1\"\n";
    assert_eq!(packages(manifest, "dependencies"), ["one-two", "three"]);
    let code = planted("src/a.rs", "use one_two::A;\n// three::B\n");
    assert_eq!(unused(&packages(manifest, "dependencies"), &[code], Users::Product), ["package three is not used"]);
    assert_eq!(commands("\n## The two commands\n\n    cargo test   # all\n\n## Next\ncargo x"), ["cargo test"]);
    assert_eq!(configuration_keys("#node = \"x\"\n# words = not one word = x\na_b = 1\n[c]\n"), ["node", "a_b"]);
}
