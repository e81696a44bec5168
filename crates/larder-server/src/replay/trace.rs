//! A trace in memory: who was accessed in which order, with sizes and times as far as they are known.
//!
//! Keys become numbers while reading and are not kept. An access takes 4 bytes, 4 more when the trace has
//! sizes, 8 more when times are asked for; a distinct key takes up to 40 while reading. Two keys count as
//! one when their 64-bit hashes agree: one chance in 3,700 that this happens once among 100 million keys.

use super::error::ReplayError;
use super::input::{Compression, LINE_BYTES_MAX, Line, Lines};
use super::layout::{Format, Layout, Record, is_void};
use super::progress::Progress;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Malformed lines that are shown one by one before the rest is only counted.
pub(super) const MALFORMED_SHOWN: usize = 10;

/// Lines from which the format is told, and the bytes after which fewer must do.
const SAMPLE_LINES: usize = 64;
const SAMPLE_BYTES: usize = 1 << 20;

/// The most accesses that a trace can have: positions are 32-bit, and the last one means "never again".
pub(super) const ACCESSES_MAX: u64 = u32::MAX as u64 - 1;

/// How to read a trace.
#[derive(Clone, Debug)]
pub(super) struct ReadOptions {
    pub(super) format: Format,
    /// A malformed line is an error instead of being skipped.
    pub(super) strict: bool,
    /// Accesses to read at most.
    pub(super) limit: u64,
    /// The size of every value when the trace has none.
    pub(super) value_bytes: u32,
    /// Milliseconds per unit of the timestamps, when they are to be kept.
    pub(super) keep_times: Option<f64>,
}

/// A trace, read.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) name: String,
    pub(super) layout: Layout,
    pub(super) compression: Compression,
    pub(super) lines: u64,
    pub(super) malformed: Malformed,
    /// Whether the limit cut it short.
    pub(super) cut: bool,
    /// The key of every access, as a number below `distinct`, in order of first appearance.
    pub(super) ids: Vec<u32>,
    pub(super) distinct: u32,
    sizes: Sizes,
    /// Milliseconds since the first access, never falling; only if asked for.
    pub(super) times_ms: Option<Vec<u64>>,
}

/// What was skipped.
#[derive(Debug, Default)]
pub(super) struct Malformed {
    pub(super) lines: u64,
    /// The first [`MALFORMED_SHOWN`], as messages.
    pub(super) first: Vec<String>,
}

#[derive(Debug)]
enum Sizes {
    All(u32),
    Each(Vec<u32>),
}

impl Trace {
    /// Reads a whole trace.
    pub(super) fn read(path: &Path, options: &ReadOptions, progress: &Progress) -> Result<Self, ReplayError> {
        let mut lines = Lines::open(path, progress)?;
        let sample = sample(&mut lines)?;
        let texts: Vec<Vec<u8>> = sample.iter().filter_map(|(_, text)| text.clone()).collect();
        let layout = Layout::detect(options.format, &texts);
        if options.keep_times.is_some() && !layout.has_times() {
            return Err(ReplayError::Setting {
                setting: "--ttl",
                value: format!("set for {}", lines.trace()),
                allowed: format!("only for traces with timestamps; this one has {layout}"),
            });
        }
        let mut reader = Reader::new(lines.trace(), layout, options);
        let mut skip_header = reader.layout.has_header();
        for (number, text) in &sample {
            if std::mem::take(&mut skip_header) {
                continue;
            }
            reader.line(*number, text.as_deref())?;
        }
        drop(sample);
        while !reader.cut {
            let number = lines.number() + 1;
            match lines.next()? {
                Some(Line::Text(text)) if is_void(text) => {}
                Some(Line::Text(text)) => reader.line(number, Some(text))?,
                Some(Line::TooLong) => reader.line(number, None)?,
                None => break,
            }
        }
        reader.finish(&lines)
    }

    /// Accesses.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The size of the value at this access, at least 1.
    pub(super) fn size(&self, access: usize) -> u32 {
        match &self.sizes {
            Sizes::All(size) => *size,
            Sizes::Each(sizes) => sizes[access],
        }
    }

    /// The size that every value is assumed to have, when the trace has none.
    pub(super) fn assumed_size(&self) -> Option<u32> {
        match self.sizes {
            Sizes::All(size) => Some(size),
            Sizes::Each(_) => None,
        }
    }

    /// The size of the largest value.
    pub(super) fn largest_size(&self) -> u32 {
        match &self.sizes {
            Sizes::All(size) => *size,
            Sizes::Each(sizes) => sizes.iter().copied().max().unwrap_or(1),
        }
    }

    /// The smallest size each key was seen with, by id.
    pub(super) fn smallest_sizes(&self) -> Vec<u32> {
        let mut smallest = vec![u32::MAX; self.distinct as usize];
        for (access, id) in self.ids.iter().enumerate() {
            let known = &mut smallest[*id as usize];
            *known = (*known).min(self.size(access));
        }
        smallest
    }

    /// The bytes of all distinct keys' values, each at the size it was first seen with.
    pub(super) fn distinct_bytes(&self) -> u64 {
        let mut next = 0;
        let mut bytes = 0;
        for (access, id) in self.ids.iter().enumerate() {
            // Ids are given in order of first appearance.
            if *id == next {
                next += 1;
                bytes += u64::from(self.size(access));
            }
        }
        bytes
    }

    /// A trace from ids, for tests of what works on traces.
    #[cfg(test)]
    pub(super) fn of(ids: &[u32], sizes: Option<&[u32]>) -> Self {
        let mut interner = Interner::default();
        Self {
            name: "test".to_owned(),
            layout: Layout::Keys,
            compression: Compression::None,
            lines: ids.len() as u64,
            malformed: Malformed::default(),
            cut: false,
            ids: ids.iter().map(|id| interner.id(&id.to_le_bytes())).collect(),
            distinct: interner.distinct(),
            sizes: sizes.map_or(Sizes::All(1), |sizes| Sizes::Each(sizes.to_vec())),
            times_ms: None,
        }
    }
}

type Numbered = (u64, Option<Vec<u8>>);

/// The first lines that are not void, with their numbers; `None` stands for a line that is too long.
fn sample(lines: &mut Lines) -> Result<Vec<Numbered>, ReplayError> {
    let mut sample = Vec::new();
    let mut bytes = 0;
    while sample.len() < SAMPLE_LINES && bytes < SAMPLE_BYTES {
        let number = lines.number() + 1;
        match lines.next()? {
            Some(Line::Text(text)) => {
                let utf16 = text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff");
                if number == 1 && utf16 && text.contains(&0) {
                    return Err(ReplayError::Encoding { trace: lines.trace().to_owned() });
                }
                if !is_void(text) {
                    bytes += text.len();
                    sample.push((number, Some(text.to_vec())));
                }
            }
            Some(Line::TooLong) => sample.push((number, None)),
            None => break,
        }
    }
    Ok(sample)
}

struct Reader<'a> {
    trace: String,
    layout: Layout,
    options: &'a ReadOptions,
    interner: Interner,
    ids: Vec<u32>,
    sizes: Option<Vec<u32>>,
    times_ms: Option<Vec<u64>>,
    time_origin: Option<f64>,
    malformed: Malformed,
    cut: bool,
}

impl<'a> Reader<'a> {
    fn new(trace: &str, layout: Layout, options: &'a ReadOptions) -> Self {
        Self {
            trace: trace.to_owned(),
            options,
            interner: Interner::default(),
            ids: Vec::new(),
            sizes: layout.has_sizes().then(Vec::new),
            times_ms: options.keep_times.map(|_| Vec::new()),
            time_origin: None,
            malformed: Malformed::default(),
            cut: false,
            layout,
        }
    }

    fn line(&mut self, number: u64, text: Option<&[u8]>) -> Result<(), ReplayError> {
        let record = match text {
            Some(text) => self.layout.parse(text),
            None => Err(format!("is longer than {LINE_BYTES_MAX} bytes")),
        };
        match record {
            Ok(Record::Key { key, time, size }) => {
                if self.has_room() {
                    self.ids.push(self.interner.id(&key));
                    self.push_size_and_time(size, time);
                }
            }
            Ok(Record::Blocks { first, count }) => {
                for block in first..=first + (count - 1) {
                    if !self.has_room() {
                        break;
                    }
                    self.ids.push(self.interner.id(&block.to_le_bytes()));
                }
            }
            Err(problem) if self.options.strict => {
                return Err(ReplayError::Malformed { trace: self.trace.clone(), line: number, problem });
            }
            Err(problem) => {
                self.malformed.lines += 1;
                if self.malformed.first.len() < MALFORMED_SHOWN {
                    self.malformed.first.push(format!("{}:{number}: {problem}", self.trace));
                }
            }
        }
        Ok(())
    }

    fn has_room(&mut self) -> bool {
        self.cut = self.ids.len() as u64 >= self.options.limit;
        !self.cut
    }

    fn push_size_and_time(&mut self, size: Option<u32>, time: Option<f64>) {
        if let (Some(sizes), Some(size)) = (&mut self.sizes, size) {
            // An entry that weighs nothing would be outside of every limit.
            sizes.push(size.max(1));
        }
        if let (Some(times), Some(unit_ms), Some(time)) = (&mut self.times_ms, self.options.keep_times, time)
        {
            let origin = *self.time_origin.get_or_insert(time);
            let ms = ((time - origin) * unit_ms) as u64;
            times.push(ms.max(times.last().copied().unwrap_or(0)));
        }
    }

    fn finish(mut self, lines: &Lines) -> Result<Trace, ReplayError> {
        let read = lines.number();
        if self.ids.is_empty() {
            let Malformed { lines: malformed, first } = self.malformed;
            let first = first.into_iter().next();
            return Err(ReplayError::NoAccesses { trace: self.trace, lines: read, malformed, first });
        }
        // Growing left up to half of it unused, for as long as the replay takes.
        self.ids.shrink_to_fit();
        Ok(Trace {
            name: self.trace,
            layout: self.layout,
            compression: lines.compression(),
            lines: read,
            malformed: self.malformed,
            cut: self.cut,
            distinct: self.interner.distinct(),
            ids: self.ids,
            sizes: self.sizes.map_or(Sizes::All(self.options.value_bytes), Sizes::Each),
            times_ms: self.times_ms,
        })
    }
}

/// Numbers keys in order of first appearance.
#[derive(Default)]
struct Interner(HashMap<u64, u32, BuildHasherDefault<AlreadyHashed>>);

impl Interner {
    fn id(&mut self, key: &[u8]) -> u32 {
        let next = self.distinct();
        *self.0.entry(xxh3_64(key)).or_insert(next)
    }

    fn distinct(&self) -> u32 {
        u32::try_from(self.0.len()).expect("there are at most ACCESSES_MAX accesses, and no more keys")
    }
}

/// Passes on the one `u64` it is given.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn options() -> ReadOptions {
        ReadOptions { format: Format::Auto, strict: false, limit: 1000, value_bytes: 7, keep_times: None }
    }

    fn read_with(content: &[u8], options: &ReadOptions) -> Result<Trace, ReplayError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        Trace::read(file.path(), options, &Progress::hidden())
    }

    fn read(content: &[u8]) -> Trace {
        read_with(content, &options()).unwrap()
    }

    #[test]
    fn keys_are_bytes_and_void_lines_are_nothing() {
        let trace = read(b"\xef\xbb\xbfa\r\n\r\n# comment\n\xff\xfe\n a\na\n\xff\xfe");
        assert_eq!(trace.ids, [0, 1, 2, 0, 1]);
        assert_eq!((trace.distinct, trace.malformed.lines, trace.lines), (3, 0, 7));
        assert_eq!(trace.assumed_size(), Some(7));
    }

    #[test]
    fn lis_lines_expand_to_blocks() {
        let trace = read(b"5 3 0 0\n6 1 0 1\n");
        assert_eq!(trace.ids, [0, 1, 2, 1]);
    }

    #[test]
    fn sizes_and_times() {
        let options = ReadOptions { keep_times: Some(1000.0), ..options() };
        let trace = read_with(b"time,key,size\n10,a,5\n11.5,b,0\n11,a,6\n", &options).unwrap();
        assert_eq!((0..3).map(|access| trace.size(access)).collect::<Vec<_>>(), [5, 1, 6]);
        assert_eq!(trace.times_ms, Some(vec![0, 1500, 1500]), "time never goes back");
        assert_eq!(trace.distinct_bytes(), 6);
        assert_eq!(trace.smallest_sizes(), [5, 1]);
    }

    #[test]
    fn malformed_lines_are_counted_and_the_first_ten_kept() {
        let mut content = "1,a,1\n".repeat(30);
        content.push_str(&"2,b\n".repeat(12));
        let trace = read(content.as_bytes());
        assert_eq!((trace.len(), trace.malformed.lines), (30, 12));
        assert_eq!(trace.malformed.first.len(), MALFORMED_SHOWN);
        assert!(
            trace.malformed.first[0].ends_with(":31: has 2 columns, expected 3"),
            "{:?}",
            trace.malformed
        );
        let error = read_with(content.as_bytes(), &ReadOptions { strict: true, ..options() }).unwrap_err();
        assert!(matches!(error, ReplayError::Malformed { line: 31, .. }), "{error}");
    }

    #[test]
    fn malformed_line_after_the_sample_is_named_too() {
        let content = "1 1 0 0\n".repeat(500) + "x\n" + &"1 1 0 0\n".repeat(5);
        let trace = read(content.as_bytes());
        assert!(trace.malformed.first[0].contains(":501: "), "{:?}", trace.malformed);
        assert_eq!(trace.len(), 505);
    }

    #[test]
    fn limit_cuts_within_a_lis_line_and_says_so() {
        let trace = read_with(b"1 700 0 0\n1 700 0 0\n", &options()).unwrap();
        assert_eq!((trace.len(), trace.cut), (1000, true));
        let trace = read_with(b"1 700 0 0\n1 300 0 0\n", &options()).unwrap();
        assert_eq!((trace.len(), trace.cut), (1000, false));
    }

    #[test]
    fn nothing_to_replay_is_an_error() {
        for content in [&b""[..], b"\n\n", b"# only a comment\n", b"timestamp,key,size\n"] {
            let error = read_with(content, &options()).unwrap_err();
            assert!(matches!(error, ReplayError::NoAccesses { .. }), "{error}");
        }
        let error = read_with(b"\xff\xfea\0\n\0", &options()).unwrap_err();
        assert!(matches!(error, ReplayError::Encoding { .. }), "{error}");
    }

    #[test]
    fn ttl_needs_times() {
        let error = read_with(b"a\nb\n", &ReadOptions { keep_times: Some(1.0), ..options() }).unwrap_err();
        assert!(error.to_string().contains("one key per line"), "{error}");
    }
}
