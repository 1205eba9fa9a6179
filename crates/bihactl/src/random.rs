//! Secrets and identifiers, from the kernel.

use std::fs::File;
use std::io::{self, Read};

use biha_core::ClusterId;

/// Letters of a password: none needs quoting in a password file, a connection string or a shell.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A new password of 32 letters (192 bits).
pub fn password() -> io::Result<String> {
    let letter = |byte: u8| char::from(LETTERS[usize::from(byte % 64)]);
    Ok(bytes::<32>()?.into_iter().map(letter).collect())
}

/// A new cluster's number; never 0.
pub fn cluster_id() -> io::Result<ClusterId> {
    Ok(ClusterId(u64::from_le_bytes(bytes()?).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_differ_and_need_no_quoting() {
        let (a, b) = (password().expect("random"), password().expect("random"));
        assert_ne!(a, b);
        assert_eq!(a.len(), 32);
        assert!(a.bytes().all(|c| LETTERS.contains(&c)));
        assert_ne!(cluster_id().expect("random"), cluster_id().expect("random"));
    }
}
