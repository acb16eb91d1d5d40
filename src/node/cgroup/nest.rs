//! Jobs whose directories are inside another job's: who they are, and what memory is whose.

use std::collections::{BTreeMap, BTreeSet};

use super::{AttachError, Sampler, counts_cpu, parent_of};
use crate::domain::id::Attempt;
use crate::domain::meter::{JobSample, Missing, Reading};
use crate::node::layout::Hierarchy;
use crate::node::sibling;

impl Sampler {
    /// Memory that a job inside another one holds is not that one's. If it cannot be read, nobody knows what the outer one's is.
    pub(super) fn take_off_inner_memory(&self, samples: &mut [JobSample]) {
        if self.nests.is_empty() {
            return;
        }
        let raw: BTreeMap<Attempt, [Reading<u64>; 2]> = samples
            .iter()
            .map(|sample| {
                let anon = sample.memory_anon_bytes.clone().unwrap_or(Reading::Seen(0));
                (sample.attempt, [sample.memory_bytes.clone(), anon])
            })
            .collect();
        for sample in samples {
            for [memory, anon] in self.nests.get(&sample.attempt).into_iter().flatten().filter_map(|inner| raw.get(inner)) {
                sample.memory_bytes = less(sample.memory_bytes.clone(), memory);
                sample.memory_anon_bytes = sample.memory_anon_bytes.take().map(|whole| less(whole, anon));
            }
        }
    }

    /// Which jobs are inside which, anew; asked only when a directory comes that is related to another one, or one of a nest goes.
    pub(super) fn find_nests(&mut self) {
        let mut nests: BTreeMap<Attempt, BTreeSet<Attempt>> = BTreeMap::new();
        for (path, attempt) in &self.paths {
            if let Some(outer) = self.nearest_above(path, *attempt) {
                nests.entry(outer).or_default().insert(*attempt);
            }
        }
        self.nests = nests;
    }

    /// The other job whose directory is the nearest above this one.
    fn nearest_above(&self, path: &str, attempt: Attempt) -> Option<Attempt> {
        let parents = std::iter::successors(Some(parent_of(path)), |above| (*above != "/").then(|| parent_of(above)));
        parents.filter_map(|above| self.paths.get(above)).find(|outer| **outer != attempt).copied()
    }

    /// The directories of other jobs below this one.
    fn below<'s>(&'s self, path: &str, attempt: Attempt) -> impl Iterator<Item = (&'s str, Attempt)> {
        let first = format!("{path}/");
        let inside = first.clone();
        let from = self.paths.range(first..).take_while(move |(below, _)| below.starts_with(&inside));
        from.filter(move |(_, inner)| **inner != attempt).map(|(below, inner)| (below.as_str(), *inner))
    }

    /// A job is inside another one with all of its directories or with none: else nobody could tell what is whose.
    pub(super) fn refuse_partly_inside(&self, attempt: Attempt, dirs: &[(&str, Hierarchy)]) -> Result<(), AttachError> {
        let counting: Vec<&str> = dirs.iter().filter(|(_, hierarchy)| counts_cpu(*hierarchy)).map(|(path, _)| *path).collect();
        let around: BTreeSet<Option<Attempt>> = counting.iter().map(|path| self.nearest_above(path, attempt)).collect();
        let several = around.len() > 1;
        let inner: BTreeSet<Attempt> = counting.iter().flat_map(|path| self.below(path, attempt)).map(|(_, inner)| inner).collect();
        let is_held = |path: &str| counting.iter().any(|upper| sibling::is_below(path, upper));
        let half = inner.into_iter().find(|inner| {
            let mut theirs = self.dirs.values().filter(|dir| dir.attempt == *inner && counts_cpu(dir.hierarchy));
            theirs.any(|dir| dirs.iter().any(|(_, hierarchy)| *hierarchy == dir.hierarchy) && !is_held(&dir.dir.path))
        });
        match (several.then(|| around.into_iter().flatten().next()).flatten(), half) {
            (Some(other), _) | (None, Some(other)) => Err(AttachError::PartlyInside(other)),
            (None, None) => Ok(()),
        }
    }

    /// A job's directories, by their paths; and whether they make or enlarge a nest.
    pub(super) fn enter_paths(&mut self, attempt: Attempt) {
        let keys = self.jobs.get(&attempt).map_or(Vec::new(), |job| job.keys().to_vec());
        let paths: Vec<String> = keys.iter().filter_map(|key| self.dirs.get(*key)).map(|dir| dir.dir.path.clone()).collect();
        let related = |path: &String| self.nearest_above(path, attempt).is_some() || self.below(path, attempt).next().is_some();
        let is_related = paths.iter().any(related);
        self.paths.extend(paths.into_iter().map(|path| (path, attempt)));
        if is_related {
            self.find_nests();
        }
    }
}

/// What is left of a level without a part of it. A part that has gone holds nothing.
fn less(whole: Reading<u64>, part: &Reading<u64>) -> Reading<u64> {
    match part {
        Reading::Seen(part) => whole.map(|whole| whole.saturating_sub(*part)),
        Reading::Missing(Missing::Vanished | Missing::Replaced) => whole,
        Reading::Missing(why) => Reading::Missing(why.clone()),
    }
}
