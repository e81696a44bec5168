//! What is written is what is read: bytes, expiry, batches, restarts.

use super::{Bench, Case, Failure, Needs, Verdict, gone_at, load, same, set};
use crate::backend::{Miss, PutOutcome, Removed};
use crate::clock::NEVER_MS;
use crate::error::ErrorKind;
use crate::key::{EntryKey, Namespace};
use crate::stamp::{STAMP_AHEAD_MAX_MS, Stamp};
use bytes::Bytes;
use std::time::Duration;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "round_trip", needs: Needs::Nothing, run: |b| Box::pin(round_trip(b)) },
        Case { name: "overwrite", needs: Needs::Nothing, run: |b| Box::pin(overwrite(b)) },
        Case { name: "any_key", needs: Needs::Nothing, run: |b| Box::pin(any_key(b)) },
        Case { name: "any_value", needs: Needs::Nothing, run: |b| Box::pin(any_value(b)) },
        Case { name: "expiry_over_all_of_u64", needs: Needs::Nothing, run: |b| Box::pin(expiry(b)) },
        Case { name: "expiry_as_time_passes", needs: Needs::Nothing, run: |b| Box::pin(expiry_passes(b)) },
        Case { name: "distrusted_stamp_is_a_miss", needs: Needs::Nothing, run: |b| Box::pin(distrusted(b)) },
        Case { name: "batches_keep_their_order", needs: Needs::Nothing, run: |b| Box::pin(batches(b)) },
        Case { name: "empty_batches", needs: Needs::Nothing, run: |b| Box::pin(empty_batches(b)) },
        Case { name: "namespaces_are_apart", needs: Needs::Nothing, run: |b| Box::pin(namespaces_apart(b)) },
        Case { name: "usage_counts", needs: Needs::Nothing, run: |b| Box::pin(usage(b)) },
        Case { name: "last_stamp", needs: Needs::Nothing, run: |b| Box::pin(last_stamp(b)) },
        Case { name: "closed_means_closed", needs: Needs::Nothing, run: |b| Box::pin(closed(b)) },
        Case { name: "durable_over_a_restart", needs: Needs::Durable, run: |b| Box::pin(restart(b)) },
    ]
}

async fn round_trip(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    same("a read of nothing", b.read(&key).await?, Err(Miss::Absent))?;
    let ticket = b.backend.get(&key).await?.ticket;
    same(
        "a load with the miss's ticket",
        b.put(load(&key, "one", ticket, b.stamp())).await?,
        PutOutcome::Stored,
    )?;
    b.reads("after a load", &key, "one").await?;
    b.set(&key, "two").await?;
    b.reads("after a set", &key, "two").await?;
    b.backend.ping().await?;
    Ok(())
}

async fn overwrite(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    for body in ["a", "a longer body", "b", ""] {
        b.set(&key, body).await?;
        b.reads("an overwritten entry", &key, body).await?;
    }
    let ticket = b.ticket(&key).await?;
    let loads = [
        b.put(load(&key, "l1", ticket, b.stamp())).await?,
        b.put(load(&key, "l2", ticket, b.stamp())).await?,
    ];
    same("two loads of one ticket", loads, [PutOutcome::Stored; 2])?;
    b.reads("load against load: the last one", &key, "l2").await
}

async fn any_key(b: &Bench<'_>) -> Verdict {
    let long = "k".repeat(1 << 20);
    let other_long = format!("{long}x");
    let texts: [&str; 9] =
        ["", "k", "\0", "a\0b", "ünï", "'; DROP TABLE entry; --", "%_*", &long, &other_long];
    let mut keys: Vec<EntryKey> = texts.iter().map(|text| b.key(text)).collect::<Result<_, _>>()?;
    let any_bytes: Vec<u8> = (0..=255).collect();
    keys.push(EntryKey::new(&b.namespace, &Bytes::from(any_bytes))?);
    keys.push(EntryKey::new(&b.namespace, &(1u8, "k"))?);
    for (i, key) in keys.iter().enumerate() {
        b.set(key, &i.to_string()).await?;
    }
    for (i, key) in keys.iter().enumerate() {
        b.reads(&format!("key number {i}"), key, &i.to_string()).await?;
    }
    for key in &keys {
        same("a removal of any key", b.backend.remove(key).await?, Removed::Existed)?;
        b.misses("after it", key, Miss::Absent).await?;
    }
    Ok(())
}

async fn any_value(b: &Bench<'_>) -> Verdict {
    let large: Vec<u8> = (0..(1 << 20) + 7).map(|i| ((i * 31) >> 3) as u8).collect();
    for value in [Vec::new(), vec![0], (0..=255).collect(), vec![0xff; 5000], large] {
        let key = b.key("k")?;
        let mut put = set(&key, "", b.ticket(&key).await?, b.stamp());
        put.sealed = Bytes::from(value);
        let sealed = put.sealed.clone();
        same("a set of any bytes", b.put(put).await?, PutOutcome::Stored)?;
        same("its bytes", b.read(&key).await?, Ok(sealed))?;
    }
    Ok(())
}

/// The same verdict everywhere for a physical expiry on every boundary, before and after a sweep, today
/// and at the end of time.
async fn expiry(b: &Bench<'_>) -> Verdict {
    let now = b.now_ms();
    let half = 1 << 63;
    let times = [0, 1, now - 1, now, now + 1, now + 2, half - 1, half, half + 1, u64::MAX - 1, NEVER_MS];
    for (i, at) in times.into_iter().enumerate() {
        let key = b.key(&format!("at {at}"))?;
        let ticket = b.ticket(&key).await?;
        let put =
            if i % 2 == 0 { set(&key, "v", ticket, b.stamp()) } else { load(&key, "v", ticket, b.stamp()) };
        same(&format!("a put that is gone at {at}"), b.put(gone_at(put, at)).await?, PutOutcome::Stored)?;
    }
    for wall in [now, now + 1, half - 1, half, half + 1, u64::MAX - 1, u64::MAX] {
        b.clock.set_wall_ms(wall);
        for is_swept in [false, true] {
            for at in times {
                let key = b.key(&format!("at {at}"))?;
                let what = format!("an entry that is gone at {at}, at {wall}, swept: {is_swept}");
                if at != NEVER_MS && at <= wall {
                    b.misses(&what, &key, Miss::Expired).await?;
                } else {
                    b.reads(&what, &key, "v").await?;
                }
            }
            b.backend.sweep(1000).await?;
        }
    }
    Ok(())
}

async fn expiry_passes(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let put = gone_at(set(&key, "v", b.ticket(&key).await?, b.stamp()), b.now_ms() + 1000);
    same("a set with a TTL", b.put(put).await?, PutOutcome::Stored)?;
    b.clock.advance(Duration::from_millis(999));
    b.reads("a millisecond before", &key, "v").await?;
    b.clock.advance(Duration::from_millis(1));
    b.misses("at its end", &key, Miss::Expired).await?;
    same("a removal of what is expired", b.backend.remove(&key).await?, Removed::Absent)?;
    b.set(&key, "again").await?;
    b.reads("set again", &key, "again").await
}

async fn distrusted(b: &Bench<'_>) -> Verdict {
    let ahead = |ms| Stamp::new(b.now_ms() + ms, 0, 1);
    for (i, (ms, is_trusted)) in
        [(STAMP_AHEAD_MAX_MS, true), (STAMP_AHEAD_MAX_MS + 1, false), (400 * STAMP_AHEAD_MAX_MS, false)]
            .into_iter()
            .enumerate()
    {
        let key = b.key(&format!("k{i}"))?;
        b.put(set(&key, "ahead", b.ticket(&key).await?, ahead(ms))).await?;
        if is_trusted {
            b.reads("a stamp a day ahead", &key, "ahead").await?;
        } else {
            b.misses("a stamp beyond a day ahead", &key, Miss::Clock).await?;
            b.set(&key, "now").await?;
            b.reads("a set of now over a distrusted one", &key, "now").await?;
        }
    }
    match b.backend.last_stamp().await? {
        Some(stamp) if stamp.is_distrusted(b.now_ms()) => {
            Err(Failure(format!("last_stamp: expected none that is distrusted, got {stamp:?}")))
        }
        _ => Ok(()),
    }
}

async fn batches(b: &Bench<'_>) -> Verdict {
    let names: Vec<String> = (0..600).map(|i| format!("k{i}")).collect();
    let keys: Vec<EntryKey> = names.iter().map(|name| b.key(name)).collect::<Result<_, _>>()?;
    let mut puts = Vec::new();
    for (i, key) in keys.iter().enumerate().filter(|(i, _)| i % 3 != 0) {
        // Loads: a set in the batch might refuse another one, whose key has the same fence.
        puts.push(load(key, &format!("v{i}"), b.ticket(key).await?, b.stamp()));
    }
    // Twice the same key: the last one wins.
    puts.push(load(&keys[1], "second", b.ticket(&keys[1]).await?, b.stamp()));
    let count = puts.len();
    let outcomes: Vec<PutOutcome> = b.backend.put_many(puts).await.into_iter().collect::<Result<_, _>>()?;
    same("put_many", outcomes, vec![PutOutcome::Stored; count])?;
    let mut asked = keys.clone();
    asked.push(keys[1].clone());
    let reads = b.backend.get_many(&asked).await;
    same("the number of answers", reads.len(), asked.len())?;
    for (i, read) in reads.into_iter().enumerate() {
        let expected = match i {
            1 | 600 => Ok("second".to_owned()),
            i if i % 3 == 0 => Err(Miss::Absent),
            i => Ok(format!("v{i}")),
        };
        same(&format!("get_many, number {i}"), read?.found, expected.map(Bytes::from))?;
    }
    let twice = [keys[0].clone(), keys[1].clone(), keys[1].clone(), keys[2].clone()];
    let removed: Vec<Removed> = b.backend.remove_many(&twice).await.into_iter().collect::<Result<_, _>>()?;
    same("remove_many", removed, vec![Removed::Absent, Removed::Existed, Removed::Absent, Removed::Existed])?;
    b.misses("after remove_many", &keys[2], Miss::Absent).await?;
    b.reads("its neighbour", &keys[4], "v4").await
}

async fn empty_batches(b: &Bench<'_>) -> Verdict {
    same("get_many of none", b.backend.get_many(&[]).await.len(), 0)?;
    same("put_many of none", b.backend.put_many(Vec::new()).await.len(), 0)?;
    same("remove_many of none", b.backend.remove_many(&[]).await.len(), 0)?;
    same("a sweep of nothing", b.backend.sweep(0).await?, 0)
}

async fn namespaces_apart(b: &Bench<'_>) -> Verdict {
    let other = Namespace::new("other")?;
    let (here, there) = (b.key("k")?, EntryKey::new(&other, "k")?);
    b.set(&here, "here").await?;
    b.misses("the same key in another namespace", &there, Miss::Absent).await?;
    b.set(&there, "there").await?;
    b.reads("here", &here, "here").await?;
    b.backend.remove(&here).await?;
    b.reads("there, after a removal here", &there, "there").await
}

/// Passes where entries can't be counted.
async fn usage(b: &Bench<'_>) -> Verdict {
    let Some(empty) = b.usage().await? else { return Ok(()) };
    same("entries of an empty backend", empty.entries, 0)?;
    let key = b.key("k")?;
    b.set(&key, &"x".repeat(10_000)).await?;
    b.set(&b.key("l")?, "small").await?;
    let used = b.backend.usage().await?;
    same("entries", used.entries, 2)?;
    if !(10_000..20_000).contains(&(used.bytes - empty.bytes)) {
        return Err(Failure(format!("bytes of 10,005 bytes in two entries: got {}", used.bytes)));
    }
    b.set(&key, "small").await?;
    b.backend.remove(&b.key("l")?).await?;
    let used = b.backend.usage().await?;
    same("entries after a removal", used.entries, 1)?;
    if used.bytes - empty.bytes > 1_000 {
        return Err(Failure(format!("bytes after an overwrite with a small value: got {}", used.bytes)));
    }
    Ok(())
}

async fn last_stamp(b: &Bench<'_>) -> Verdict {
    same("of an empty backend", b.backend.last_stamp().await?, None)?;
    let first = b.set(&b.key("a")?, "v").await?;
    let latest = b.set(&b.key("b")?, "v").await?;
    same("after two sets", b.backend.last_stamp().await?, Some(latest))?;
    let key = b.key("c")?;
    b.put(set(&key, "v", b.ticket(&key).await?, first)).await?;
    same("after an older set of another key", b.backend.last_stamp().await?, Some(latest))?;
    b.backend.remove(&b.key("b")?).await?;
    same("after its entry was removed", b.backend.last_stamp().await?, Some(latest))
}

async fn closed(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    b.set(&key, "v").await?;
    let ticket = b.ticket(&key).await?;
    b.backend.close().await?;
    let kind = |error: crate::Error| error.kind();
    let closed = ErrorKind::Closed;
    same("get", b.backend.get(&key).await.map(drop).map_err(kind), Err(closed))?;
    same("ticket", b.backend.ticket(&key).await.map(drop).map_err(kind), Err(closed))?;
    let put = set(&key, "v", ticket, b.stamp());
    same("put", b.backend.put(put).await.map(drop).map_err(kind), Err(closed))?;
    same("remove", b.backend.remove(&key).await.map(drop).map_err(kind), Err(closed))?;
    same("ping", b.backend.ping().await.map_err(kind), Err(closed))?;
    for read in b.backend.get_many(std::slice::from_ref(&key)).await {
        same("get_many", read.map(drop).map_err(kind), Err(closed))?;
    }
    Ok(())
}

/// Entries, fences, markers and tickets survive: a restart is no way around a removal.
async fn restart(b: &Bench<'_>) -> Verdict {
    let keys = ["kept", "removed", "marked", "in flight"].map(|name| b.key(name));
    let [kept, removed, marked, in_flight] = keys;
    let (kept, removed, marked, in_flight) = (kept?, removed?, marked?, in_flight?);
    b.set(&kept, "kept").await?;
    b.set(&removed, "removed").await?;
    let stamp = b.set_tagged(&marked, "marked", &["tag"]).await?;
    let before = b.ticket(&in_flight).await?;
    b.backend.remove(&removed).await?;
    b.backend.remove(&in_flight).await?;
    b.backend.mark(&b.namespace, &crate::backend::Mark::Tag("tag".into())).await?;
    let after = b.ticket(&in_flight).await?;
    b.backend.close().await?;
    let Some(backend) = b.subject.reopen(b.backend.clone(), b.clock.clone().into()).await else {
        return Ok(());
    };
    let again = Bench {
        subject: b.subject,
        backend,
        clock: b.clock.clone(),
        namespace: b.namespace.clone(),
        stamps: 1000.into(),
    };
    again.reads("an entry after a restart", &kept, "kept").await?;
    again.misses("a removed entry after a restart", &removed, Miss::Absent).await?;
    again.misses("a marked entry after a restart", &marked, Miss::Tag).await?;
    same("last_stamp after a restart", again.backend.last_stamp().await?, Some(stamp))?;
    let late = again.put(load(&in_flight, "late", before, again.stamp())).await?;
    same("a load from before a removal and a restart", late, PutOutcome::Fenced)?;
    // A fresh incarnation may refuse this one, too; but nothing else may happen to it.
    match again.put(load(&in_flight, "fresh", after, again.stamp())).await? {
        PutOutcome::Stored => again.reads("a load from after the removal", &in_flight, "fresh").await,
        PutOutcome::Fenced => again.misses("a refused load", &in_flight, Miss::Absent).await,
        other => Err(Failure(format!("a load after a restart: got {other:?}"))),
    }
}
