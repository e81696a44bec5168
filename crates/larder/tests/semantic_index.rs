//! What this prevents: an answer of one scope that is found for another, an entry that was removed and is found all the
//! same, a nearest entry that is missed, and one bad vector that makes every later lookup wrong.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use larder::ErrorKind;
use larder::semantic::Model;
use larder::semantic::embed::Ngrams;
use larder::semantic::index::{Near, Partition, Scan, ScanOptions, VectorIndex};
use proptest::prelude::*;

fn model(dimensions: usize) -> Model {
    Model { name: "m".into(), version: "1".into(), dimensions }
}

fn index(dimensions: usize) -> Scan {
    Scan::new(model(dimensions), ScanOptions::default()).unwrap()
}

fn options(entries_max: usize) -> ScanOptions {
    let mut options = ScanOptions::default();
    options.entries_max = entries_max;
    options
}

const A: Partition = Partition([1; 16]);
const B: Partition = Partition([2; 16]);

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// Near `center`, and of length 1.
fn around(random: &mut fastrand::Rng, center: &[f32], spread: f32) -> Vec<f32> {
    let vector = center.iter().map(|x| x + spread * (random.f32() + random.f32() + random.f32() - 1.5));
    let vector: Vec<f32> = vector.collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(bool, u64, u8),
    Remove(bool, u64),
    Clear(bool),
    Search(bool, u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<bool>(), 0u64..40, any::<u8>()).prop_map(|(p, id, v)| Step::Insert(p, id, v)),
        3 => (any::<bool>(), 0u64..40).prop_map(|(p, id)| Step::Remove(p, id)),
        1 => any::<bool>().prop_map(Step::Clear),
        4 => (any::<bool>(), any::<u8>(), 1usize..6).prop_map(|(p, v, count)| Step::Search(p, v, count)),
    ]
}

fn vector(seed: u8) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    (0..20).map(|_| random.f32() - 0.4).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn it_does_what_a_map_does(steps in prop::collection::vec(step(), 1..120)) {
        let index = Scan::new(model(20), options(50)).unwrap();
        let mut map: BTreeMap<(bool, u64), u8> = BTreeMap::new();
        let partition = |b| if b { A } else { B };
        for step in steps {
            match step {
                Step::Insert(p, id, v) => {
                    let fits = map.len() < 50 || map.contains_key(&(p, id));
                    let outcome = index.insert(partition(p), id, &vector(v)).map_err(|error| error.kind());
                    prop_assert_eq!(outcome, if fits { Ok(()) } else { Err(ErrorKind::Full) });
                    if fits {
                        map.insert((p, id), v);
                    }
                }
                Step::Remove(p, id) => {
                    prop_assert_eq!(index.remove(partition(p), id), map.remove(&(p, id)).is_some());
                }
                Step::Clear(p) => {
                    let before = map.len();
                    map.retain(|&(of, _), _| of != p);
                    prop_assert_eq!(index.remove_partition(partition(p)), before - map.len());
                }
                Step::Search(p, v, count) => {
                    let found = index.search(partition(p), &vector(v), count, -1.0).unwrap();
                    let mut all: Vec<f64> = map.iter().filter(|((of, _), _)| *of == p)
                        .map(|(_, &other)| cosine(&vector(v), &vector(other))).collect();
                    all.sort_by(|a, b| b.total_cmp(a));
                    all.truncate(count);
                    prop_assert_eq!(found.len(), all.len());
                    for (near, exact) in found.iter().zip(all) {
                        prop_assert!((f64::from(near.similarity) - exact).abs() < 1e-5);
                        let stored = map.get(&(p, near.id));
                        prop_assert!(stored.is_some_and(|&s| (cosine(&vector(v), &vector(s)) - exact).abs() < 1e-5));
                    }
                }
            }
            prop_assert_eq!(index.len(), map.len());
            prop_assert_eq!(index.partition_len(A) + index.partition_len(B), map.len());
        }
    }
}

/// Of the queries how many find the nearest of all. All vectors have length 1.
fn recall(index: &Scan, vectors: &BTreeMap<u64, Vec<f32>>, queries: &[Vec<f32>]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let hits = queries.iter().filter(|query| {
        let best = vectors.values().map(|v| product(query, v)).fold(-1.0, f32::max);
        (index.search(A, query, 1, -1.0).unwrap()[0].similarity - best).abs() < 1e-5
    });
    hits.count() as f64 / queries.len() as f64
}

/// As some models' vectors are: in clusters, and all in nearly the same direction, so that plain signs are equal.
#[test]
fn the_nearest_is_found_among_vectors_that_all_point_the_same_way() {
    let mut random = fastrand::Rng::with_seed(3);
    let cone: Vec<f32> = (0..64).map(|_| 0.4 * (random.f32() - 0.5)).collect();
    let centers: Vec<Vec<f32>> = (0..100).map(|_| around(&mut random, &cone, 0.07)).collect();
    let index = index(64);
    let mut vectors = BTreeMap::new();
    for id in 0..2000 {
        let center = random.usize(..centers.len());
        let vector = around(&mut random, &centers[center], 0.05);
        index.insert(A, id, &vector).unwrap();
        vectors.insert(id, vector);
    }
    let queries: Vec<Vec<f32>> = (0..100)
        .map(|_| {
            let center = random.usize(..centers.len());
            around(&mut random, &centers[center], 0.05)
        })
        .collect();
    assert!(recall(&index, &vectors, &queries) >= 0.99, "{}", recall(&index, &vectors, &queries));
    // The same after most were replaced or removed, and the slots have moved.
    for id in 0..2000 {
        match id % 4 {
            0 => drop(vectors.remove(&id).map(|_| assert!(index.remove(A, id)))),
            1 => {
                let vector = around(&mut random, &centers[id as usize % 100], 0.05);
                index.insert(A, id, &vector).unwrap();
                vectors.insert(id, vector);
            }
            _ => {}
        }
    }
    assert_eq!(index.len(), vectors.len());
    assert!(recall(&index, &vectors, &queries) >= 0.99, "{}", recall(&index, &vectors, &queries));
    // Every entry finds itself, also while the rest goes and memory is given back.
    for id in vectors.keys().copied().collect::<Vec<_>>() {
        if id % 10 != 2 {
            assert!(index.remove(A, id));
            vectors.remove(&id);
        }
    }
    for (id, vector) in &vectors {
        let found = index.search(A, vector, 1, 0.9999).unwrap();
        assert_eq!(found.first().map(|near| near.id), Some(*id));
    }
}

#[test]
fn the_nearest_is_found_among_texts_by_their_letters() {
    let embedder = Ngrams::new();
    let mut random = fastrand::Rng::with_seed(4);
    let words =
        "card bank pin transfer refund lost stolen limit fee cash account statement currency exchange top up";
    let words: Vec<&str> = words.split(' ').collect();
    let mut text = || (0..7).map(|_| words[random.usize(..words.len())]).collect::<Vec<_>>().join(" ");
    let index = index(512);
    let vectors: BTreeMap<u64, Vec<f32>> = (0..1200).map(|id| (id, embedder.vector(&text()))).collect();
    for (id, vector) in &vectors {
        index.insert(A, *id, vector).unwrap();
    }
    let queries: Vec<Vec<f32>> = (0..60).map(|_| embedder.vector(&text())).collect();
    assert!(recall(&index, &vectors, &queries) >= 0.99, "{}", recall(&index, &vectors, &queries));
}

#[test]
fn a_bad_vector_is_refused_and_changes_nothing() {
    let index = index(4);
    index.insert(A, 1, &[1.0, 0.0, 0.0, 0.0]).unwrap();
    let bad: [(&[f32], ErrorKind); 7] = [
        (&[], ErrorKind::Config),
        (&[1.0; 3], ErrorKind::Config),
        (&[1.0; 5], ErrorKind::Config),
        (&[0.0; 4], ErrorKind::Codec),
        (&[1.0, f32::NAN, 0.0, 0.0], ErrorKind::Codec),
        (&[f32::INFINITY, 0.0, 0.0, 0.0], ErrorKind::Codec),
        (&[f32::NEG_INFINITY; 4], ErrorKind::Codec),
    ];
    for (vector, kind) in bad {
        assert_eq!(index.insert(A, 1, vector).unwrap_err().kind(), kind);
        assert_eq!(index.insert(A, 2, vector).unwrap_err().kind(), kind);
        assert_eq!(index.insert(B, 2, vector).unwrap_err().kind(), kind);
        assert_eq!(index.search(A, vector, 1, 0.0).unwrap_err().kind(), kind);
        let found = index.search(A, &[2.0, 0.0, 0.0, 0.0], 5, -1.0).unwrap();
        assert_eq!(found, [Near { id: 1, similarity: 1.0 }]);
    }
    assert_eq!((index.len(), index.partition_len(B)), (1, 0));
    // Huge and tiny numbers have a direction, too.
    for (id, scale) in [(2, f32::MAX), (3, f32::MIN_POSITIVE / 1e6)] {
        index.insert(A, id, &[0.0, scale, 0.0, 0.0]).unwrap();
        let found = index.search(A, &[0.0, scale, 0.0, 0.0], 1, 0.99).unwrap();
        assert_eq!(found[0].similarity, 1.0);
        index.remove(A, id);
    }
    for (count, min) in [(0, 0.0), (1001, 0.0), (1, f32::NAN)] {
        assert_eq!(index.search(A, &[1.0; 4], count, min).unwrap_err().kind(), ErrorKind::Config);
    }
    assert_eq!(Scan::new(model(0), options(1)).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(Scan::new(model(9000), options(1)).unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn a_threshold_and_equal_entries() {
    let index = index(2);
    for (id, vector) in [(9, [1.0, 0.0]), (3, [2.0, 0.0]), (5, [0.0, 1.0]), (7, [-1.0, 0.0])] {
        index.insert(A, id, &vector).unwrap();
    }
    let ids = |count, min| {
        let found = index.search(A, &[1.0, 0.0], count, min).unwrap();
        found.into_iter().map(|near| near.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(10, -1.0), [3, 9, 5, 7]);
    assert_eq!(ids(1, -1.0), [3]);
    assert_eq!(ids(10, 0.5), [3, 9]);
    assert_eq!(ids(10, 1.5), Vec::<u64>::new());
    assert!(index.search(B, &[1.0, 0.0], 1, -1.0).unwrap().is_empty());
}

#[test]
fn a_full_index_refuses_and_takes_again_after_a_removal() {
    let index = Scan::new(model(2), options(2)).unwrap();
    index.insert(A, 1, &[1.0, 0.0]).unwrap();
    index.insert(B, 1, &[1.0, 0.0]).unwrap();
    assert_eq!(index.insert(A, 2, &[1.0, 0.0]).unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(index.insert(Partition([3; 16]), 2, &[1.0, 0.0]).unwrap_err().kind(), ErrorKind::Full);
    // In place of what is there it fits.
    index.insert(A, 1, &[0.0, 1.0]).unwrap();
    assert_eq!(index.remove_partition(B), 1);
    index.insert(A, 2, &[1.0, 0.0]).unwrap();
    assert_eq!(index.len(), 2);
}

/// Writers change their own ids while readers look; a reader never sees what is not there, and an entry that nobody
/// touches is found by every search.
#[test]
fn searches_run_while_entries_come_and_go() {
    let index = index(32);
    let fixed: Vec<f32> = (0..32).map(|n| if n == 0 { 10.0 } else { 0.1 }).collect();
    index.insert(A, u64::MAX, &fixed).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let index = &index;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(writer);
                    for round in 0..2000u64 {
                        let id = writer * 10_000 + random.u64(..900);
                        let vector: Vec<f32> = (0..32).map(|_| random.f32() - 0.5).collect();
                        match round % 3 {
                            0 => drop(index.remove(A, id)),
                            _ => index.insert(A, id, &vector).unwrap(),
                        }
                        if round % 500 == 0 {
                            index.insert(B, id, &vector).unwrap();
                            index.remove_partition(B);
                        }
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut searches = 0;
            while !done.load(Ordering::Relaxed) || searches == 0 {
                let found = index.search(A, &fixed, 3, -1.0).unwrap();
                assert_eq!(found[0].id, u64::MAX);
                searches += 1;
            }
            searches
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    let left = index.len();
    assert_eq!((index.partition_len(A), index.partition_len(B)), (left, 0));
    assert_eq!((index.remove_partition(A), index.len()), (left, 0));
}

#[test]
fn a_snapshot_comes_back_or_is_refused() {
    let mut random = fastrand::Rng::with_seed(5);
    let index = index(40);
    let mut vectors = Vec::new();
    for id in 0..2200 {
        let vector: Vec<f32> = (0..40).map(|_| random.f32() - 0.5).collect();
        index.insert(if id % 5 == 0 { B } else { A }, id, &vector).unwrap();
        vectors.push(vector);
    }
    let mut bytes = Vec::new();
    index.snapshot(&mut bytes).unwrap();
    let back = Scan::restore(model(40), ScanOptions::default(), &mut bytes.as_slice()).unwrap();
    assert_eq!((back.len(), back.partition_len(B)), (2200, 440));
    for (id, vector) in vectors.iter().enumerate().step_by(7) {
        let partition = if id % 5 == 0 { B } else { A };
        assert_eq!(back.search(partition, vector, 1, -1.0).unwrap()[0].id, id as u64);
    }
    let refused = |model: Model, options: ScanOptions, mut bytes: &[u8]| {
        Scan::restore(model, options, &mut bytes).unwrap_err().kind()
    };
    let mut other = model(40);
    other.version = "2".into();
    assert_eq!(refused(other, options(9999), &bytes), ErrorKind::Config);
    assert_eq!(refused(model(41), options(9999), &bytes), ErrorKind::Config);
    assert_eq!(refused(model(40), options(2199), &bytes), ErrorKind::Full);
    // Cut off anywhere, also between two parts, and with any byte changed.
    for cut in (0..bytes.len()).step_by(30_011).chain([bytes.len() - 1, bytes.len() - 28]) {
        assert_eq!(refused(model(40), options(9999), &bytes[..cut]), ErrorKind::Corrupt, "{cut}");
    }
    for at in (0..bytes.len()).step_by(20_011).chain(0..60) {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        assert_eq!(refused(model(40), options(9999), &changed), ErrorKind::Corrupt, "{at}");
    }
}
