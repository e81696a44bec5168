//! The yardsticks of hit ratio: LRU, ARC, and Belady's optimum, which knows the future.

use std::collections::{BTreeSet, HashMap};

/// Keys in the order of their last use.
#[derive(Default)]
struct Recency {
    stamps: HashMap<u32, u64>,
    order: BTreeSet<(u64, u32)>,
    now: u64,
}

impl Recency {
    fn len(&self) -> usize {
        self.stamps.len()
    }

    fn remove(&mut self, key: u32) -> bool {
        self.stamps.remove(&key).is_some_and(|stamp| self.order.remove(&(stamp, key)))
    }

    fn touch(&mut self, key: u32) {
        self.remove(key);
        self.now += 1;
        self.stamps.insert(key, self.now);
        self.order.insert((self.now, key));
    }

    fn pop(&mut self) -> Option<u32> {
        let (_, key) = self.order.pop_first()?;
        self.stamps.remove(&key);
        Some(key)
    }
}

pub fn lru(keys: &[u32], capacity: usize) -> u64 {
    let mut cache = Recency::default();
    let mut hits = 0;
    for &key in keys {
        hits += u64::from(cache.stamps.contains_key(&key));
        cache.touch(key);
        if cache.len() > capacity {
            cache.pop();
        }
    }
    hits
}

/// Megiddo and Modha, FAST 2003, figure 4.
pub fn arc(keys: &[u32], capacity: usize) -> u64 {
    let [mut t1, mut t2, mut b1, mut b2]: [Recency; 4] = Default::default();
    let (mut target, mut hits) = (0usize, 0);
    for &key in keys {
        if t1.remove(key) || t2.remove(key) {
            hits += 1;
            t2.touch(key);
            continue;
        }
        let (in_b1, in_b2) = (b1.stamps.contains_key(&key), b2.stamps.contains_key(&key));
        if in_b1 {
            target = (target + (b2.len() / b1.len()).max(1)).min(capacity);
        } else if in_b2 {
            target = target.saturating_sub((b1.len() / b2.len()).max(1));
        } else if t1.len() + b1.len() == capacity {
            if t1.len() < capacity {
                b1.pop();
            } else {
                t1.pop();
                t2.touch(key);
                t2.remove(key);
                t1.touch(key);
                continue;
            }
        } else if t1.len() + t2.len() + b1.len() + b2.len() >= 2 * capacity {
            b2.pop();
        }
        if t1.len() + t2.len() >= capacity {
            if t1.len() > 0 && (t1.len() > target || in_b2 && t1.len() == target) {
                t1.pop().into_iter().for_each(|key| b1.touch(key));
            } else {
                t2.pop().into_iter().for_each(|key| b2.touch(key));
            }
        }
        if b1.remove(key) || b2.remove(key) {
            t2.touch(key);
        } else {
            t1.touch(key);
        }
    }
    hits
}

/// Evicts what is used furthest in the future.
pub fn belady(keys: &[u32], capacity: usize) -> u64 {
    let mut next_use = vec![usize::MAX; keys.len()];
    let mut seen = HashMap::new();
    for (at, &key) in keys.iter().enumerate().rev() {
        next_use[at] = seen.insert(key, at).unwrap_or(usize::MAX);
    }
    let mut cached: HashMap<u32, usize> = HashMap::new();
    let mut order = BTreeSet::new();
    let mut hits = 0;
    for (at, &key) in keys.iter().enumerate() {
        if let Some(before) = cached.insert(key, next_use[at]) {
            hits += 1;
            order.remove(&(before, key));
        } else if cached.len() > capacity
            && let Some((_, victim)) = order.pop_last()
        {
            cached.remove(&victim);
        }
        order.insert((next_use[at], key));
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sequences() {
        let keys = [1, 2, 3, 1, 2, 3, 1, 2, 3];
        assert_eq!(lru(&keys, 2), 0);
        assert_eq!(lru(&keys, 3), 6);
        // The textbook's: 7 0 1 2 0 3 0 4 2 3 0 3 2 1 2 0 1 7 0 1 with 3 frames faults 9 and 12 times.
        let keys = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1];
        assert_eq!(belady(&keys, 3), 20 - 9);
        assert_eq!(lru(&keys, 3), 20 - 12);
        assert!(arc(&keys, 3) <= belady(&keys, 3));
    }
}
