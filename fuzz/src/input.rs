//! An input, taken apart from its beginning; past its end everything is 0.

pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most so many bytes.
    pub(crate) fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}

/// Appends the crc32c of everything before it, as biha's files have it.
pub(crate) fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Flips a bit that the input chooses.
pub(crate) fn flipped(bytes: &[u8], choice: u32) -> (Vec<u8>, usize) {
    let bit = choice as usize % (bytes.len() * 8);
    let mut other = bytes.to_vec();
    other[bit / 8] ^= 1 << (bit % 8);
    (other, bit / 8)
}
