//! The lines of a trace: opens it, undoes gzip or zstd, cuts it into lines of bounded length. Knows
//! nothing about what a line means.

use super::error::ReplayError;
use super::progress::Progress;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

/// A longer line is malformed. It bounds memory on input that has no line ends at all.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;

/// Large enough that a read and a tick of the progress bar cost nothing per line.
const BUFFER_BYTES: usize = 256 << 10;

/// How the bytes of a trace are packed, told by their first four, never by the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            // A skippable frame may stand before the first one with content.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// One line without its end (`\n` or `\r\n`).
pub(super) enum Line<'a> {
    Text(&'a [u8]),
    /// Over [`LINE_BYTES_MAX`]; its bytes were skipped.
    TooLong,
}

/// Reads a trace line by line.
pub(super) struct Lines {
    trace: String,
    compression: Compression,
    reader: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    /// Opens a file, or stdin when `path` is `-`.
    pub(super) fn open(path: &Path, progress: &Progress) -> Result<Self, ReplayError> {
        let trace = name_of(path);
        let failed = |source| ReplayError::Open { trace: trace.clone(), source };
        let raw: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            if metadata.is_dir() {
                return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            // A pipe or a device has no length of its own.
            if metadata.is_file() {
                progress.input_bytes(metadata.len());
            }
            Box::new(file)
        };
        Self::over(trace.clone(), progress.count(raw)).map_err(failed)
    }

    fn over(trace: String, raw: impl Read + 'static) -> io::Result<Self> {
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, raw);
        let mut magic = Vec::with_capacity(4);
        (&mut raw).take(4).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let whole = Cursor::new(magic).chain(raw);
        let reader: Box<dyn BufRead> = match compression {
            Compression::None => Box::new(whole),
            Compression::Gzip => Box::new(buffered(flate2::bufread::MultiGzDecoder::new(whole))),
            Compression::Zstd => Box::new(buffered(zstd::Decoder::with_buffer(whole)?)),
        };
        Ok(Self { trace, compression, reader, line: Vec::new(), number: 0 })
    }

    pub(super) fn trace(&self) -> &str {
        &self.trace
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// The number of the line that [`next`](Self::next) gave last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line, `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, ReplayError> {
        match self.read_line() {
            Ok(LineRead::End) => Ok(None),
            Ok(LineRead::TooLong) => Ok(Some(Line::TooLong)),
            Ok(LineRead::Whole) => {
                let mut text = &self.line[..];
                text = text.strip_suffix(b"\n").unwrap_or(text);
                text = text.strip_suffix(b"\r").unwrap_or(text);
                if self.number == 1 {
                    text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
                }
                Ok(Some(Line::Text(text)))
            }
            Err(source) => {
                Err(ReplayError::Read { trace: self.trace.clone(), line: self.number + 1, source })
            }
        }
    }

    fn read_line(&mut self) -> io::Result<LineRead> {
        self.line.clear();
        let most = LINE_BYTES_MAX as u64 + 2;
        let bytes = (&mut self.reader).take(most).read_until(b'\n', &mut self.line)?;
        if bytes == 0 {
            return Ok(LineRead::End);
        }
        self.number += 1;
        if bytes > LINE_BYTES_MAX && self.line.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n')?;
            return Ok(LineRead::TooLong);
        }
        Ok(LineRead::Whole)
    }
}

enum LineRead {
    Whole,
    TooLong,
    End,
}

fn buffered(decoder: impl Read) -> BufReader<impl Read> {
    BufReader::with_capacity(BUFFER_BYTES, decoder)
}

/// What headings, JSON and messages call the trace: the path as it was given.
fn name_of(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read_all(bytes: Vec<u8>) -> (Compression, Vec<Option<Vec<u8>>>) {
        let mut lines = Lines::over("t".to_owned(), Cursor::new(bytes)).unwrap();
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(match line {
                Line::Text(text) => Some(text.to_vec()),
                Line::TooLong => None,
            });
        }
        (lines.compression(), all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn line_ends_and_byte_order_mark_are_stripped() {
        let (_, lines) = read_all(b"\xef\xbb\xbfa\r\nb\n\nc\r".to_vec());
        assert_eq!(lines, [&b"a"[..], b"b", b"", b"c"].map(|line| Some(line.to_vec())));
    }

    #[test]
    fn compression_is_told_by_content_and_spans_members() {
        let expected = ["a", "b", "c"].map(|line| Some(line.as_bytes().to_vec()));
        let two_members = [gzip(b"a\nb"), gzip(b"\nc\n")].concat();
        assert_eq!(read_all(two_members), (Compression::Gzip, expected.to_vec()));
        let skippable = b"\x50\x2a\x4d\x18\x02\0\0\0hi".to_vec();
        let two_frames = [
            skippable,
            zstd::encode_all(&b"a\nb"[..], 1).unwrap(),
            zstd::encode_all(&b"\nc\n"[..], 1).unwrap(),
        ]
        .concat();
        assert_eq!(read_all(two_frames), (Compression::Zstd, expected.to_vec()));
        assert_eq!(read_all(b"a\nb\nc".to_vec()), (Compression::None, expected.to_vec()));
    }

    #[test]
    fn input_shorter_than_a_magic_number_is_text() {
        assert_eq!(read_all(Vec::new()), (Compression::None, vec![]));
        assert_eq!(read_all(b"\x28\xb5".to_vec()), (Compression::None, vec![Some(b"\x28\xb5".to_vec())]));
    }

    #[test]
    fn truncated_stream_is_an_error_that_names_the_line() {
        let body: Vec<u8> = (0..50_000u32)
            .flat_map(|i| format!("{}\n", i.wrapping_mul(2_654_435_761)).into_bytes())
            .collect();
        for whole in [gzip(&body), zstd::encode_all(&body[..], 1).unwrap()] {
            let mut lines =
                Lines::over("t".to_owned(), Cursor::new(whole[..whole.len() / 2].to_vec())).unwrap();
            let error = loop {
                match lines.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("a truncated stream ended as if it were whole"),
                    Err(error) => break error.to_string(),
                }
            };
            assert!(error.starts_with("t:"), "{error}");
            assert!(lines.number() > 0);
        }
    }

    #[test]
    fn overlong_line_is_skipped_and_the_next_one_read() {
        let mut bytes = vec![b'x'; LINE_BYTES_MAX];
        bytes.extend_from_slice(b"\n");
        bytes.extend(vec![b'y'; 3 * LINE_BYTES_MAX]);
        bytes.extend_from_slice(b"\nz\n");
        let (_, lines) = read_all(bytes);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].as_ref().map(Vec::len), Some(LINE_BYTES_MAX));
        assert_eq!(lines[1], None);
        assert_eq!(lines[2], Some(b"z".to_vec()));
    }
}
