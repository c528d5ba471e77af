//! The few bytes of restic's format that we write and read ourselves (restic, doc/design.rst): sealed files, and packs.
//!
//! The library writes every byte of a dump. What it cannot write is a tree whose files have the sizes that a stream had in the end:
//! it asks for them before it reads, and `restic restore` makes files of the size that the tree says.

use std::num::NonZeroU32;

use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key as CipherKey, aead::Aead};
use rand::RngCore;
use rustic_core::{
    Id,
    repofile::{BlobType, IndexBlob, IndexFile, IndexPack, MasterKey},
};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// Seals and opens with a repository's master key.
#[derive(Clone)]
pub(crate) struct Seal(Box<CipherKey>);

/// A pack in the making: blobs of one type.
pub(crate) struct Pack<'s> {
    seal: &'s Seal,
    kind: BlobType,
    bytes: Vec<u8>,
    header: Vec<u8>,
    blobs: Vec<IndexBlob>,
}

/// A pack, its name, and what the index says of it.
pub(crate) struct Packed {
    pub(crate) id: Id,
    pub(crate) bytes: Vec<u8>,
    pub(crate) index: IndexPack,
}

const NONCE: usize = 16;
/// As restic does unless it is told otherwise.
const COMPRESSION: i32 = 3;
/// The first byte of a compressed file of version 2 of the format.
const COMPRESSED: u8 = 2;
/// No file of JSON is larger when it is unpacked: an index has at most some 50 000 blobs, of 150 bytes each.
const LARGEST: usize = 64 << 20;

impl Seal {
    pub(crate) fn new(key: &MasterKey) -> Self {
        let mut cipher = CipherKey::default();
        let parts = [(&key.encrypt, 0..32), (&key.mac.k, 32..48), (&key.mac.r, 48..64)];
        for (part, range) in parts {
            if part.len() == range.len() {
                cipher[range].copy_from_slice(part);
            }
        }
        Self(Box::new(cipher))
    }

    /// A nonce, what it seals, and its authentication code.
    pub(crate) fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        // Encryption fails for more than 64 GiB only.
        let cipher = self.cipher().encrypt(&nonce.into(), plain).unwrap_or_default();
        [nonce.as_slice(), &cipher].concat()
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let (nonce, cipher) = sealed.split_first_chunk::<NONCE>().ok_or("it is too short")?;
        self.cipher().decrypt(&(*nonce).into(), cipher).map_err(|_| "its authentication code is wrong".to_owned())
    }

    /// A file of JSON, compressed.
    pub(crate) fn file(&self, content: &impl Serialize) -> Result<Vec<u8>, String> {
        let json = serde_json::to_vec(content).map_err(|error| error.to_string())?;
        let mut plain = vec![COMPRESSED];
        plain.extend(zstd::encode_all(json.as_slice(), COMPRESSION).map_err(|error| error.to_string())?);
        Ok(self.seal(&plain))
    }

    /// A file of JSON, compressed or not.
    pub(crate) fn read<T: DeserializeOwned>(&self, sealed: &[u8]) -> Result<T, String> {
        let plain = self.open(sealed)?;
        let json = match plain.split_first() {
            Some((&COMPRESSED, packed)) => unpack(packed)?,
            // A file of version 1 begins with a brace or a bracket.
            _ => plain,
        };
        serde_json::from_slice(&json).map_err(|error| error.to_string())
    }

    fn cipher(&self) -> Aes256CtrPoly1305Aes {
        Aes256CtrPoly1305Aes::new(&self.0)
    }
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut plain = Vec::new();
    let decoder = zstd::Decoder::new(packed).map_err(|error| error.to_string())?;
    decoder.take(LARGEST as u64 + 1).read_to_end(&mut plain).map_err(|error| error.to_string())?;
    if plain.len() > LARGEST { Err(format!("it has more than {LARGEST} bytes")) } else { Ok(plain) }
}

impl<'s> Pack<'s> {
    pub(crate) fn new(seal: &'s Seal, kind: BlobType) -> Self {
        Self { seal, kind, bytes: Vec::new(), header: Vec::new(), blobs: Vec::new() }
    }

    /// Its name is the hash of what it is; what is there already is not added again.
    pub(crate) fn add(&mut self, blob: &[u8]) -> Result<Id, String> {
        let id = id_of(blob);
        if self.blobs.iter().any(|blob| *blob.id == id) {
            return Ok(id);
        }
        let sealed = self.seal.seal(&zstd::encode_all(blob, COMPRESSION).map_err(|error| error.to_string())?);
        let (offset, length) = (small(self.bytes.len())?, small(sealed.len())?);
        let plain = small(blob.len())?;
        self.bytes.extend(sealed);
        self.header.push(if self.kind == BlobType::Tree { 3 } else { 2 });
        self.header.extend(length.to_le_bytes());
        self.header.extend(plain.to_le_bytes());
        self.header.extend(bytes_of(&id));
        let blob = serde_json::json!({
            "id": id, "type": self.kind, "offset": offset, "length": length,
            "uncompressed_length": NonZeroU32::new(plain),
        });
        self.blobs.push(serde_json::from_value(blob).map_err(|error| error.to_string())?);
        Ok(id)
    }

    pub(crate) fn finish(mut self) -> Result<Packed, String> {
        let header = self.seal.seal(&self.header);
        let length = small(header.len())?;
        self.bytes.extend(header);
        self.bytes.extend(length.to_le_bytes());
        let id = id_of(&self.bytes);
        let index = IndexPack { id: id.into(), blobs: self.blobs, ..IndexPack::default() };
        Ok(Packed { id, bytes: self.bytes, index })
    }
}

/// What the index says of some packs.
pub(crate) fn index_of(packs: Vec<IndexPack>) -> IndexFile {
    IndexFile { packs, ..IndexFile::default() }
}

/// The SHA-256 of something: its name.
pub(crate) fn id_of(bytes: &[u8]) -> Id {
    Id::new(Sha256::digest(bytes).into())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes_of(id: &Id) -> Vec<u8> {
    let hex = id.to_hex();
    let digits = hex.as_str().as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

fn small(length: usize) -> Result<u32, String> {
    u32::try_from(length).map_err(|_| format!("{length} bytes are too many for a pack"))
}
