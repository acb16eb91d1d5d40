//! The kernel's own description of its types (BTF, Documentation/bpf/btf.rst): where a member lies, what number a function has.
//!
//! Read once, when a program for the kernel is made. Only what is asked for is looked up: an index of all names would cost more memory than
//! the agent uses for a thousand jobs.

use std::fmt;

/// Where the kernel shows it.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Names of names in names: members of members without a name are followed so deep.
const DEPTH_MAX: u32 = 8;

/// Kinds of types (`BTF_KIND_*`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Why it tells nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not a BTF text of this machine's byte order, or a broken one.
    #[error("not BTF, or a form that is not known")]
    Malformed,
    /// This kernel has no such type, function or member.
    #[error("this kernel has no {0}")]
    Unknown(String),
}

/// A BTF text, and where in it each type stands.
pub struct Btf<'t> {
    types: &'t [u8],
    names: &'t [u8],
    /// By number, from 1 on.
    places: Vec<u32>,
}

impl fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} types", self.places.len())
    }
}

/// One type's head.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    info: u32,
    /// Of a reference: what it refers to.
    size_or_type: u32,
    /// Where what follows it stands.
    body: usize,
}

impl Head {
    const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn count(self) -> usize {
        (self.info & 0xffff) as usize
    }

    /// Bytes that follow the head; `None` for a kind that is not known.
    const fn body_bytes(self) -> Option<usize> {
        Some(match self.kind() {
            2 | 7 | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.count(),
            kind::ENUM | kind::FUNC_PROTO => 8 * self.count(),
            _ => return None,
        })
    }
}

impl<'t> Btf<'t> {
    /// # Errors
    /// [`BtfError::Malformed`].
    pub fn parse(text: &'t [u8]) -> Result<Btf<'t>, BtfError> {
        let word = |at: usize| word(text, at).ok_or(BtfError::Malformed);
        let magic = text.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        if magic != Some(MAGIC) {
            return Err(BtfError::Malformed);
        }
        let (header, types_at, types_len, names_at, names_len) = (word(4)?, word(8)?, word(12)?, word(16)?, word(20)?);
        let part = |at: u32, length: u32| {
            let from = usize::try_from(u64::from(header) + u64::from(at)).ok()?;
            text.get(from..from.checked_add(usize::try_from(length).ok()?)?)
        };
        let types = part(types_at, types_len).ok_or(BtfError::Malformed)?;
        let names = part(names_at, names_len).ok_or(BtfError::Malformed)?;
        let mut btf = Btf { types, names, places: Vec::with_capacity(types.len() / 20) };
        let mut at = 0;
        while at < types.len() {
            btf.places.push(u32::try_from(at).map_err(|_| BtfError::Malformed)?);
            let head = btf.head_at(at).ok_or(BtfError::Malformed)?;
            at = head.body + head.body_bytes().ok_or(BtfError::Malformed)?;
        }
        Ok(btf)
    }

    /// The number of a function of the kernel.
    ///
    /// # Errors
    /// [`BtfError::Unknown`].
    pub fn function(&self, name: &str) -> Result<u32, BtfError> {
        self.named(kind::FUNC, name)
    }

    /// Where a member lies in a structure, in bytes; `path` goes through members of members: `["bstat", "cputime"]`.
    ///
    /// # Errors
    /// [`BtfError::Unknown`].
    pub fn offset(&self, structure: &str, path: &[&str]) -> Result<u32, BtfError> {
        let mut inside = self.named(kind::STRUCT, structure)?;
        let mut offset = 0;
        for name in path {
            let unknown = || BtfError::Unknown(format!("{structure}.{}", path.join(".")));
            let (bits, of) = self.member(inside, name, DEPTH_MAX).ok_or_else(unknown)?;
            offset += bits / 8;
            inside = self.unwrapped(of).ok_or_else(unknown)?;
        }
        Ok(offset)
    }

    /// The value of a word of an enumeration.
    ///
    /// # Errors
    /// [`BtfError::Unknown`].
    pub fn word(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let unknown = || BtfError::Unknown(format!("{enumeration}.{name}"));
        let head = self.head(self.named(kind::ENUM, enumeration)?).ok_or_else(unknown)?;
        let words = (0..head.count()).map(|nth| head.body + 8 * nth);
        let found = words.into_iter().find(|at| word(self.types, *at).is_some_and(|place| self.is_called(place, name)));
        found.and_then(|at| word(self.types, at + 4)).ok_or_else(unknown)
    }

    fn named(&self, kind: u32, name: &str) -> Result<u32, BtfError> {
        let is_it = |place: &u32| self.head_at(*place as usize).is_some_and(|head| head.kind() == kind && self.is_called(head.name, name));
        let found = self.places.iter().position(is_it).and_then(|nth| u32::try_from(nth + 1).ok());
        found.ok_or_else(|| BtfError::Unknown(name.to_owned()))
    }

    /// A member's place in bits, and its type. Members of members that have no name are this one's.
    fn member(&self, of: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let head = self.head(of).filter(|head| matches!(head.kind(), kind::STRUCT | kind::UNION))?;
        for at in (0..head.count()).map(|nth| head.body + 12 * nth) {
            let (place, of, bits) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let bits = if head.info >> 31 == 1 { bits & 0x00ff_ffff } else { bits }; // above them: how many bits a bit field has
            if self.is_called(place, name) {
                return Some((bits, of));
            }
            if self.is_called(place, "")
                && let Some((further, of)) = self.unwrapped(of).filter(|_| 0 < depth).and_then(|inner| self.member(inner, name, depth - 1))
            {
                return Some((bits.checked_add(further)?, of));
            }
        }
        None
    }

    /// The type behind `typedef`, `const` and the like.
    fn unwrapped(&self, mut number: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            let Some(head) = self.head(number) else { return Some(number) }; // `void`
            match head.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => number = head.size_or_type,
                _ => return Some(number),
            }
        }
        None
    }

    fn head(&self, number: u32) -> Option<Head> {
        self.head_at(*self.places.get(usize::try_from(number.checked_sub(1)?).ok()?)? as usize)
    }

    fn head_at(&self, at: usize) -> Option<Head> {
        let read = |by: usize| word(self.types, at + by);
        Some(Head { name: read(0)?, info: read(4)?, size_or_type: read(8)?, body: at + 12 })
    }

    fn is_called(&self, place: u32, name: &str) -> bool {
        let text = usize::try_from(place).ok().and_then(|place| self.names.get(place..));
        text.and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A text of these types; names are added as they come.
    struct Text {
        types: Vec<u8>,
        names: Vec<u8>,
    }

    impl Text {
        fn new() -> Text {
            Text { types: Vec::new(), names: vec![0] }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = u32::try_from(self.names.len()).unwrap();
            self.names.extend(name.bytes().chain([0]));
            at
        }

        fn add(&mut self, name: &str, info: u32, size_or_type: u32, body: &[u32]) {
            let name = self.name(name);
            for word in [name, info, size_or_type].iter().chain(body) {
                self.types.extend(word.to_ne_bytes());
            }
        }

        fn whole(&self) -> Vec<u8> {
            let (types, names) = (u32::try_from(self.types.len()).unwrap(), u32::try_from(self.names.len()).unwrap());
            let mut text: Vec<u8> = MAGIC.to_ne_bytes().to_vec();
            text.extend([1, 0]);
            for word in [24, 0, types, types, names] {
                text.extend(u32::to_ne_bytes(word));
            }
            text.extend(&self.types);
            text.extend(&self.names);
            text
        }
    }

    fn info(kind: u32, count: u32) -> u32 {
        kind << 24 | count
    }

    /// 1 `u64`; 2 `inner { a; b }`; 3 a typedef of it; 4 a union without a name that holds it; 5 `outer { first; 4; last }`; 6 an enumeration;
    /// 7 a function.
    fn example() -> Vec<u8> {
        let mut text = Text::new();
        text.add("u64", info(kind::INT, 0), 8, &[64]);
        let (a, b) = (text.name("a"), text.name("b"));
        text.add("inner", info(kind::STRUCT, 2), 16, &[a, 1, 0, b, 1, 64]);
        text.add("inner_t", info(kind::TYPEDEF, 0), 2, &[]);
        let nested = text.name("nested");
        text.add("", info(kind::UNION, 1), 16, &[nested, 3, 0]);
        let (first, last) = (text.name("first"), text.name("last"));
        text.add("outer", info(kind::STRUCT, 3), 32, &[first, 1, 0, 0, 4, 64, last, 1, 192]);
        let (zero, five) = (text.name("zero"), text.name("five"));
        text.add("words", info(kind::ENUM, 2), 4, &[zero, 0, five, 5]);
        text.add("call", info(kind::FUNC, 0), 1, &[]);
        text.whole()
    }

    #[test]
    fn members_are_found_through_members_without_a_name_and_behind_other_names() {
        let text = example();
        let btf = Btf::parse(&text).unwrap();
        assert_eq!(btf.offset("outer", &["last"]), Ok(24));
        assert_eq!(btf.offset("outer", &["nested", "b"]), Ok(16), "8 to the union, 8 in what it holds");
        assert_eq!(btf.word("words", "five"), Ok(5));
        assert_eq!(btf.function("call"), Ok(7));
    }

    #[test]
    fn what_this_kernel_does_not_have_is_named() {
        let text = example();
        let btf = Btf::parse(&text).unwrap();
        assert_eq!(btf.offset("outer", &["nested", "c"]), Err(BtfError::Unknown("outer.nested.c".to_owned())));
        assert_eq!(btf.function("inner"), Err(BtfError::Unknown("inner".to_owned())), "a structure is no function");
        assert_eq!(btf.word("words", "fiv"), Err(BtfError::Unknown("words.fiv".to_owned())), "the beginning of a name is not the name");
    }

    #[test]
    fn this_kernels_own_text_is_read() {
        let Ok(text) = std::fs::read(VMLINUX) else { return eprintln!("this kernel shows no BTF") };
        let btf = Btf::parse(&text).unwrap();
        assert_eq!(btf.offset("task_struct", &["pid"]).unwrap() % 4, 0);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(mut text in Just(example()), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12), cut in any::<prop::sample::Index>()) {
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text.truncate(cut.index(text.len()) + 1);
            if let Ok(btf) = Btf::parse(&text) {
                let _ = (btf.offset("outer", &["nested", "b"]), btf.word("words", "five"), btf.function("call"));
            }
        }
    }
}
