//! Reads tensors from a safetensors file, one at a time and as `f32`. Trusts nothing in it: each length is checked
//! against the file's before memory is taken for it.
//!
//! Layout: the header's length (8 bytes, little endian), the header (JSON: name to dtype, shape and byte range), then
//! the bytes.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, ErrorKind, Result};

/// The header of a model with 10,000 tensors has about 1 MiB.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The tensors of an open file.
pub(crate) struct Tensors<R> {
    file: R,
    data_begins: u64,
    index: HashMap<String, Info>,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Tensor(Info),
    /// `__metadata__`, or a tensor whose description can't be understood; the latter is missed when it is asked for.
    Other(IgnoredAny),
}

impl<R: Read + Seek> Tensors<R> {
    pub(crate) fn open(mut file: R) -> Result<Self> {
        let bytes = file.seek(SeekFrom::End(0)).and_then(|bytes| file.rewind().map(|()| bytes));
        let bytes = bytes.map_err(unreadable)?;
        let mut length = [0; 8];
        if bytes < 8 {
            return Err(corrupt(format!("{bytes} bytes are no safetensors file")));
        }
        file.read_exact(&mut length).map_err(unreadable)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX || header_bytes > bytes - 8 {
            return Err(corrupt(format!("a header of {header_bytes} bytes in a file of {bytes}")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(unreadable)?;
        let entries: HashMap<String, Entry> = serde_json::from_slice(&header)
            .map_err(|problem| corrupt(format!("the header is not valid: {problem}")))?;

        let data_begins = 8 + header_bytes;
        let data_bytes = bytes - data_begins;
        let mut index = HashMap::new();
        for (name, entry) in entries {
            let Entry::Tensor(info) = entry else { continue };
            let (begin, end) = info.data_offsets;
            if begin > end || end > data_bytes {
                return Err(corrupt(format!("bytes {begin} to {end} of {data_bytes}")).in_tensor(&name));
            }
            index.insert(name, info);
        }
        Ok(Tensors { file, data_begins, index })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The number of rows of a matrix, or of elements of a vector.
    pub(crate) fn rows(&self, name: &str) -> Result<usize> {
        let info = self.index.get(name).ok_or_else(|| missing(name))?;
        let rows = info.shape.first().copied().unwrap_or(0);
        usize::try_from(rows).map_err(|_| corrupt(format!("{rows} rows")).in_tensor(name))
    }

    /// The elements of `name`, row by row.
    pub(crate) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.index.get(name).ok_or_else(|| missing(name))?;
        if !info.shape.iter().copied().eq(shape.iter().map(|&n| n as u64)) {
            let message = format!("has shape {:?}, the configuration asks for {shape:?}", info.shape);
            return Err(corrupt(message).in_tensor(name));
        }
        let size = match info.dtype.as_str() {
            "F32" => 4,
            "F16" | "BF16" => 2,
            other => {
                let message = format!("dtype {other:?}; F32, F16 and BF16 are understood");
                return Err(Error::new(ErrorKind::Unsupported, message).in_tensor(name));
            }
        };
        let (begin, end) = info.data_offsets;
        let bytes = shape.iter().try_fold(size, |product: u64, &n| product.checked_mul(n as u64));
        if bytes != Some(end - begin) {
            let message = format!("shape {shape:?} of {} does not take {} bytes", info.dtype, end - begin);
            return Err(corrupt(message).in_tensor(name));
        }
        let mut raw = vec![0; (end - begin) as usize];
        self.file.seek(SeekFrom::Start(self.data_begins + begin)).map_err(unreadable)?;
        self.file.read_exact(&mut raw).map_err(unreadable)?;
        let values: Vec<f32> = match info.dtype.as_str() {
            "F32" => raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            "F16" => raw.chunks_exact(2).map(|b| from_f16(u16::from_le_bytes([b[0], b[1]]))).collect(),
            _ => raw
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(b[0]) << 16 | u32::from(b[1]) << 24))
                .collect(),
        };
        // One such weight would turn every vector into NaN, and every comparison with it into a miss.
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(corrupt(format!("element {at} is {}", values[at])).in_tensor(name));
        }
        Ok(values)
    }
}

fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => mantissa as f32 * 2f32.powi(-24),
        31 if mantissa == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => f32::from_bits((exponent + 112) << 23 | mantissa << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn missing(name: &str) -> Error {
    corrupt("is not in the file".into()).in_tensor(name)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn unreadable(problem: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("can't be read: {problem}"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn good() -> Vec<u8> {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "h":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[12,14]},
            "i":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
        let mut data = vec![];
        data.extend_from_slice(&1.5f32.to_le_bytes());
        data.extend_from_slice(&(-2f32).to_le_bytes());
        data.extend_from_slice(&[0x00, 0x3c, 0x01, 0x80, 0x80, 0xbf]);
        file(header, &data)
    }

    #[test]
    fn the_three_kinds_of_floats_are_read() {
        let mut tensors = Tensors::open(Cursor::new(good())).unwrap();
        assert_eq!(tensors.read("a", &[2]).unwrap(), [1.5, -2.0]);
        assert_eq!(tensors.read("h", &[1, 2]).unwrap(), [1.0, -5.960_464_5e-8]);
        assert_eq!(tensors.read("b", &[1]).unwrap(), [-1.0]);
    }

    #[test]
    fn errors_name_the_tensor() {
        let mut tensors = Tensors::open(Cursor::new(good())).unwrap();
        for (name, shape, kind) in [
            ("a", &[3][..], ErrorKind::Corrupt),
            ("i", &[1], ErrorKind::Unsupported),
            ("absent", &[1], ErrorKind::Corrupt),
        ] {
            let error = tensors.read(name, shape).unwrap_err();
            assert_eq!((error.kind(), error.tensor()), (kind, Some(name)), "{error}");
        }
    }

    #[test]
    fn a_range_or_shape_that_the_file_does_not_have_takes_no_memory() {
        for header in [
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
        ] {
            let shape = [usize::MAX, 2];
            let outcome = Tensors::open(Cursor::new(file(header, &[0; 4])));
            assert!(
                outcome.and_then(|mut t| t.read("a", &shape).or_else(|_| t.read("a", &[1]))).is_err(),
                "{header}"
            );
        }
        assert!(Tensors::open(Cursor::new(u64::MAX.to_le_bytes().to_vec())).is_err());
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused() {
        let bytes =
            file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &f32::NAN.to_le_bytes());
        let error = Tensors::open(Cursor::new(bytes)).unwrap().read("a", &[1]).unwrap_err();
        assert_eq!(error.tensor(), Some("a"));
    }

    proptest! {
        #[test]
        fn no_file_is_a_panic(
            cut in 0usize..500, changes in prop::collection::vec((0usize..500, any::<u8>()), 0..6), junk: Vec<u8>,
        ) {
            let mut bytes = good();
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(cut.max(8));
            for bytes in [bytes, junk] {
                if let Ok(mut tensors) = Tensors::open(Cursor::new(bytes)) {
                    for (name, shape) in [("a", &[2][..]), ("h", &[1, 2]), ("b", &[1]), ("i", &[1])] {
                        let _ = tensors.rows(name);
                        let _ = tensors.read(name, shape);
                    }
                }
            }
        }
    }
}
