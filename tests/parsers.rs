//! The fuzzing targets as ordinary tests: every seed, everything that fuzzing ever found, and some thousand seeded mutations of both, so
//! that neither the targets nor what they guard can rot. The long runs are `tests/fuzz/run.sh`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "fuzz/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};

/// Mutations of each target's inputs.
const MUTATIONS: u64 = 1_500;

/// Files of this target below `corpus` or `regressions`, in order.
fn inputs(folder: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(folder).join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect()
}

/// The seeds, what was found, and their mutations, all through one target.
fn runs(name: &str) {
    let target = targets::named(name).unwrap();
    let all: Vec<Vec<u8>> = ["corpus", "regressions"]
        .into_iter()
        .flat_map(|folder| inputs(folder, name))
        .map(|(file, bytes)| {
            println!("{}", file.display());
            target(&bytes);
            bytes
        })
        .collect();
    assert!(!all.is_empty(), "{name} has no seed");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |bound: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % bound.max(1)
    };
    for _ in 0..MUTATIONS {
        let mut bytes = all[below(all.len())].clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(4) {
                0 if !bytes.is_empty() => bytes[at] = u8::try_from(below(256)).unwrap(),
                1 if !bytes.is_empty() => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\0\n\"{[9-)(\xff"[below(10)]),
                _ => bytes.truncate(at),
            }
        }
        target(&bytes);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                runs(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            assert_eq!(targets::ALL.map(|(name, _)| name), run);
        }
    };
}

targets! { requests spool http config card journal log wire receipt quantity cgroup detail proc nvml btf }

/// What fuzzing found, each with the test that says what it means.
#[test]
fn everything_that_was_found_is_kept() {
    let found: Vec<String> = targets::ALL
        .iter()
        .flat_map(|(name, _)| inputs("regressions", name))
        .map(|(file, _)| file.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" of "))
        .collect();
    for kept in ["parentheses_reversed of proc", "a_billion_samples of nvml"] {
        assert!(found.contains(&kept.to_owned()), "{kept} is not in {found:?}");
    }
}
