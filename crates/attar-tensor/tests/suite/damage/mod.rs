//! Ways to damage a file, for property tests of its reader.

use proptest::{prelude::*, sample::Index};

#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// Bits of one byte change.
    Flip(Index, u8),
    /// Eight bytes become a number that tempts: huge, or about the length of the file.
    Overwrite(Index, u64),
    /// The rest is missing.
    Truncate(Index),
    /// A few bytes are missing.
    Remove(Index, usize),
    /// A few bytes come twice.
    Repeat(Index, usize),
}

/// One to four damages to a file of about `length` bytes.
pub(crate) fn damages(length: usize) -> impl Strategy<Value = Vec<Damage>> {
    let number = prop_oneof![
        Just(u64::MAX),
        Just(u64::from(u32::MAX)),
        Just(1 << 63),
        Just((1 << 61) + 1),
        0..2 * length as u64,
        any::<u64>(),
    ];
    let damage = prop_oneof![
        4 => (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        4 => (any::<Index>(), number).prop_map(|(at, number)| Damage::Overwrite(at, number)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
    ];
    prop::collection::vec(damage, 1..=4)
}

/// `bytes` after `damages`. Half of them hit the first `header` bytes.
pub(crate) fn apply(damages: &[Damage], bytes: &[u8], header: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (i, damage) in damages.iter().enumerate() {
        let reach = if i % 2 == 0 { header.min(bytes.len()) } else { bytes.len() };
        if reach > 0 {
            damage.apply(&mut bytes, reach);
        }
    }
    bytes
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>, reach: usize) {
        let run = |at: usize, count: usize| at..(at + count).min(bytes.len());
        match self {
            Damage::Flip(at, bits) => bytes[at.index(reach)] ^= bits,
            Damage::Overwrite(at, number) => {
                let range = run(at.index(reach), 8);
                let number = &number.to_le_bytes()[..range.len()];
                bytes[range].copy_from_slice(number);
            }
            Damage::Truncate(at) => bytes.truncate(at.index(reach)),
            Damage::Remove(at, count) => {
                let range = run(at.index(reach), *count);
                bytes.drain(range);
            }
            Damage::Repeat(at, count) => {
                let range = run(at.index(reach), *count);
                let (end, again) = (range.end, bytes[range].to_vec());
                bytes.splice(end..end, again);
            }
        }
    }
}
