//! The watched directories by number: a row, so that finding one costs one step and not a search.

use super::watched::Watched;

/// Names one watched directory for as long as it is watched.
pub(super) type Key = usize;

/// The row. A number that has become free is given to the next one.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    row: Vec<Option<Box<Watched>>>,
    free: Vec<Key>,
}

impl Dirs {
    pub(super) fn insert(&mut self, dir: Watched) -> Key {
        let dir = Some(Box::new(dir));
        if let Some(key) = self.free.pop() {
            self.row[key] = dir;
            key
        } else {
            self.row.push(dir);
            self.row.len() - 1
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Watched> {
        self.row.get(key)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Watched> {
        self.row.get_mut(key)?.as_deref_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Box<Watched>> {
        let dir = self.row.get_mut(key)?.take()?;
        self.free.push(key);
        Some(dir)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Watched> {
        self.row.iter().filter_map(Option::as_deref)
    }

    /// Brings what a look needs of each into the cache. Far apart in memory they come side by side here, but one by one in the look itself.
    pub(super) fn fetch(&self) {
        let words = self.values().fold(0, |sum: u64, dir| sum.wrapping_add(dir.a_word_of_each_line()));
        std::hint::black_box(words);
    }

    /// One in so many of them: at each call with the next `turn` others.
    pub(super) fn part_mut(&mut self, turn: usize, parts: usize) -> impl Iterator<Item = &mut Watched> {
        self.row.iter_mut().skip(turn % parts).step_by(parts).filter_map(Option::as_deref_mut)
    }
}
