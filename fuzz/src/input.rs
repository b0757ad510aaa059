//! Total reading of a fuzzer's bytes, and the numbers a mutator needs.

/// Fields one after another; zeros behind the end.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let found = self.take(N);
        array[..found.len()].copy_from_slice(found);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// Numbers from the seed that a mutator is called with.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u32) -> Noise {
        Noise(u64::from(seed))
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((mixed >> 32) as usize) % limit.max(1)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// How the fuzzer changes a run of bytes: `(bytes, length, capacity) -> new length`. Passed in, because it only
/// exists in a fuzz target.
pub type Mutate = fn(&mut [u8], usize, usize) -> usize;

/// Changes `section`, which may grow by half and to at most `size_max`.
pub fn mutate_section(section: &mut Vec<u8>, size_max: usize, mutate: Mutate) {
    let size = section.len().min(size_max);
    let room = (size + size / 2 + 16).min(size_max).max(1);
    section.resize(room.max(size), 0);
    let size = mutate(section, size, room);
    section.truncate(size);
}

/// Copies as much of `bytes` as there is room for and answers with how much that is.
pub fn give(bytes: &[u8], out: &mut [u8]) -> usize {
    let size = bytes.len().min(out.len());
    out[..size].copy_from_slice(&bytes[..size]);
    size
}
