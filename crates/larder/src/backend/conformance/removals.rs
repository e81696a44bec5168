//! What removes many at once, what lists, and what frees space.

use super::{Bench, Case, Failure, Needs, Verdict, gone_at, load, same, set};
use crate::backend::{Cursor, Exchange, Mark, Miss, PutOutcome, Removed, Scan};
use crate::error::ErrorKind;
use crate::key::{EntryKey, Namespace, Pattern};
use bytes::Bytes;
use std::collections::BTreeSet;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "remove", needs: Needs::Nothing, run: |b| Box::pin(remove(b)) },
        Case { name: "tags", needs: Needs::Nothing, run: |b| Box::pin(tags(b)) },
        Case { name: "clear", needs: Needs::Nothing, run: |b| Box::pin(clear(b)) },
        Case {
            name: "marks_stay_in_their_namespace",
            needs: Needs::Nothing,
            run: |b| Box::pin(marks_apart(b)),
        },
        Case {
            name: "quarantine_only_what_was_read",
            needs: Needs::Nothing,
            run: |b| Box::pin(quarantine(b)),
        },
        Case { name: "discard_only_what_was_read", needs: Needs::Nothing, run: |b| Box::pin(discard(b)) },
        Case {
            name: "exchange_changes_the_envelope_alone",
            needs: Needs::Nothing,
            run: |b| Box::pin(exchange(b)),
        },
        Case { name: "sweep_frees_and_keeps", needs: Needs::Nothing, run: |b| Box::pin(sweep(b)) },
        Case { name: "patterns", needs: Needs::Scan, run: |b| Box::pin(patterns(b)) },
        Case { name: "scan_is_complete", needs: Needs::Scan, run: |b| Box::pin(scan(b)) },
        Case { name: "scan_lists_only_what_is_valid", needs: Needs::Scan, run: |b| Box::pin(scan_valid(b)) },
        Case { name: "scan_refuses_a_strange_cursor", needs: Needs::Scan, run: |b| Box::pin(cursor(b)) },
        Case { name: "namespaces", needs: Needs::Scan, run: |b| Box::pin(namespaces(b)) },
    ]
}

async fn remove(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    same("a removal of nothing", b.backend.remove(&key).await?, Removed::Absent)?;
    b.set(&key, "v").await?;
    same("a removal", b.backend.remove(&key).await?, Removed::Existed)?;
    b.misses("after it", &key, Miss::Absent).await?;
    same("a second removal", b.backend.remove(&key).await?, Removed::Absent)?;
    b.set(&key, "w").await?;
    b.reads("set again", &key, "w").await
}

async fn tags(b: &Bench<'_>) -> Verdict {
    let keys = ["red", "blue", "both", "none"].map(|name| b.key(name));
    let [red, blue, both, none] = keys;
    let (red, blue, both, none) = (red?, blue?, both?, none?);
    let long = "t".repeat(256);
    b.set_tagged(&red, "v", &["red"]).await?;
    b.set_tagged(&blue, "v", &["blue", &long]).await?;
    b.set_tagged(&both, "v", &["red", "blue"]).await?;
    b.set(&none, "v").await?;
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    b.misses("an entry with the tag", &red, Miss::Tag).await?;
    b.misses("an entry with the tag and another", &both, Miss::Tag).await?;
    b.reads("an entry with another tag", &blue, "v").await?;
    b.reads("an entry without tags", &none, "v").await?;
    b.set_tagged(&red, "later", &["red"]).await?;
    b.reads("an entry with the tag, set after its removal", &red, "later").await?;
    same("a removal of a marked entry", b.backend.remove(&both).await?, Removed::Absent)?;
    b.backend.mark(&b.namespace, &Mark::Tag(long.into())).await?;
    b.misses("an entry with a long tag", &blue, Miss::Tag).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("never seen".into())).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    b.misses("a second removal of the tag", &red, Miss::Tag).await?;
    b.reads("an entry without tags, to the end", &none, "v").await
}

async fn clear(b: &Bench<'_>) -> Verdict {
    let (set_key, load_key) = (b.key("s")?, b.key("l")?);
    b.set_tagged(&set_key, "v", &["t"]).await?;
    let ticket = b.ticket(&load_key).await?;
    same("a load", b.put(load(&load_key, "v", ticket, b.stamp())).await?, PutOutcome::Stored)?;
    b.backend.mark(&b.namespace, &Mark::Clear).await?;
    b.misses("a set entry after a clear", &set_key, Miss::Cleared).await?;
    b.misses("a load entry after a clear", &load_key, Miss::Cleared).await?;
    b.set(&set_key, "w").await?;
    b.reads("set after the clear", &set_key, "w").await
}

async fn marks_apart(b: &Bench<'_>) -> Verdict {
    let other = Namespace::new("other")?;
    let there = EntryKey::new(&other, "k")?;
    b.set_tagged(&there, "v", &["red"]).await?;
    let ticket = b.ticket(&there).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    b.backend.mark(&b.namespace, &Mark::Clear).await?;
    b.reads("an entry of another namespace", &there, "v").await?;
    let mut put = load(&there, "loaded", ticket, b.stamp());
    put.meta.tags = crate::entry::Tags::new(["red"])?;
    same("a load of another namespace", b.put(put).await?, PutOutcome::Stored)
}

/// Where it is kept is the backend's business; it is not served any more.
async fn quarantine(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    b.set(&key, "bad").await?;
    b.backend.quarantine(&key, &Bytes::from_static(b"other"), "tampered").await?;
    b.reads("a quarantine of other bytes", &key, "bad").await?;
    b.backend.quarantine(&key, &Bytes::from_static(b"bad"), "tampered").await?;
    b.misses("a quarantine of these bytes", &key, Miss::Absent).await
}

async fn discard(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    b.set(&key, "bad").await?;
    b.backend.discard(&key, &Bytes::from_static(b"other")).await?;
    b.reads("a discard of other bytes", &key, "bad").await?;
    let ticket = b.ticket(&key).await?;
    b.backend.discard(&key, &Bytes::from_static(b"bad")).await?;
    b.misses("a discard of these bytes", &key, Miss::Absent).await?;
    b.backend.discard(&key, &Bytes::from_static(b"bad")).await?;
    same(
        "a load from before the discard",
        b.put(load(&key, "good", ticket, b.stamp())).await?,
        PutOutcome::Stored,
    )?;
    b.reads("it", &key, "good").await
}

/// Passes where exchanges are unsupported.
async fn exchange(b: &Bench<'_>) -> Verdict {
    let key = b.key("k")?;
    let (began, earlier) = (b.ticket(&key).await?, b.stamp());
    let stamp = b.set_tagged(&key, "old", &["tag"]).await?;
    let exchange = async |old: &'static [u8]| {
        let (old, new) = (Bytes::from_static(old), Bytes::from_static(b"sealed anew"));
        b.backend.exchange_many(vec![Exchange { key: key.clone(), old, new }]).await.remove(0)
    };
    match exchange(b"other").await {
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
        answer => same("an exchange of other bytes", answer?, false)?,
    }
    b.reads("after it", &key, "old").await?;
    same("an exchange", exchange(b"old").await?, true)?;
    b.reads("after it", &key, "sealed anew").await?;
    let late = set(&key, "late", began, earlier);
    same("a set that began before still meets a set", b.put(late).await?, PutOutcome::Older(stamp))?;
    b.reads("after it", &key, "sealed anew").await?;
    b.backend.mark(&b.namespace, &Mark::Tag("tag".into())).await?;
    b.misses("its tag was removed", &key, Miss::Tag).await?;
    b.backend.remove(&key).await?;
    same("an exchange of what is gone", exchange(b"sealed anew").await?, false)
}

async fn sweep(b: &Bench<'_>) -> Verdict {
    for i in 0..40 {
        let key = b.key(&format!("expired {i}"))?;
        let put = gone_at(set(&key, "v", b.ticket(&key).await?, b.stamp()), b.now_ms());
        b.put(put).await?;
        b.set_tagged(&b.key(&format!("tagged {i}"))?, "v", &["red"]).await?;
        b.set_tagged(&b.key(&format!("kept {i}"))?, "v", &["blue"]).await?;
    }
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    let first = b.backend.sweep(10).await?;
    if first > 10 {
        return Err(Failure(format!("a sweep of at most 10: freed {first}")));
    }
    let mut freed = first;
    for _ in 0..20 {
        freed += b.backend.sweep(1000).await?;
    }
    same("freed at most what is invalid", freed <= 80, true)?;
    if let Some(left) = b.usage().await? {
        same("what is left", left.entries, 40)?;
    }
    for i in 0..40 {
        b.reads("a valid entry after a sweep", &b.key(&format!("kept {i}"))?, "v").await?;
        b.misses("a marked entry after a sweep", &b.key(&format!("tagged {i}"))?, Miss::Tag).await?;
    }
    // What the sweep forgot of the marker must not let an older write in.
    let key = b.key("late")?;
    let ticket = b.ticket(&key).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("green".into())).await?;
    b.backend.sweep(1000).await?;
    let mut put = load(&key, "late", ticket, b.stamp());
    put.meta.tags = crate::entry::Tags::new(["green"])?;
    same("a load from before a marker that was swept", b.put(put).await?, PutOutcome::Fenced)
}

async fn patterns(b: &Bench<'_>) -> Verdict {
    let other = EntryKey::new(&Namespace::new("other")?, "user:1")?;
    b.set(&other, "v").await?;
    for i in 0..1500 {
        b.set(&b.key(&format!("user:{i}"))?, "v").await?;
    }
    b.set(&b.key("order:1")?, "v").await?;
    let removed = b.backend.remove_matching(&b.namespace, &Pattern::new("user:*")?).await?;
    same("a removal by pattern", removed, 1500)?;
    for i in [0, 1, 749, 1499] {
        b.misses("what matches", &b.key(&format!("user:{i}"))?, Miss::Absent).await?;
    }
    b.reads("what doesn't match", &b.key("order:1")?, "v").await?;
    b.reads("what matches in another namespace", &other, "v").await?;
    same("once more", b.backend.remove_matching(&b.namespace, &Pattern::new("user:*")?).await?, 0)
}

async fn list(b: &Bench<'_>, pattern: Option<&Pattern>, limit: usize) -> Result<Vec<String>, Failure> {
    let (mut found, mut after) = (Vec::new(), None);
    // A case stores some thousand entries: a scan that lists more goes round in circles.
    for _ in 0..5_000 {
        let page = b.backend.scan(Scan { namespace: &b.namespace, pattern, after, limit }).await?;
        if page.entries.len() > limit {
            return Err(Failure(format!("a page of at most {limit} has {} entries", page.entries.len())));
        }
        found.extend(page.entries.iter().map(|listed| listed.key.text().into_owned()));
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
    Err(Failure("a scan doesn't end".to_owned()))
}

async fn scan(b: &Bench<'_>) -> Verdict {
    let mut names = BTreeSet::new();
    for i in 0..1200 {
        let name = format!("{}:{i}", ["user", "order"][i % 2]);
        b.set(&b.key(&name)?, "v").await?;
        names.insert(name);
    }
    for limit in [1, 7, 1000, 10_000] {
        let found = list(b, None, limit).await?;
        same(&format!("how many a scan by {limit} lists"), found.len(), names.len())?;
        same(
            &format!("what a scan by {limit} lists"),
            found.into_iter().collect::<BTreeSet<_>>() == names,
            true,
        )?;
    }
    let users = Pattern::new("user:*")?;
    let found = list(b, Some(&users), 50).await?;
    same("how many a scan by pattern lists", found.len(), 600)?;
    same("what it lists", found.iter().all(|name| users.matches(name)), true)
}

async fn scan_valid(b: &Bench<'_>) -> Verdict {
    let (kept, marked, expired) = (b.key("kept")?, b.key("marked")?, b.key("expired")?);
    let until = b.now_ms() + 5;
    let put = gone_at(set(&kept, "12345", b.ticket(&kept).await?, b.stamp()), until);
    b.put(put).await?;
    b.set_tagged(&marked, "v", &["red"]).await?;
    let put = gone_at(set(&expired, "v", b.ticket(&expired).await?, b.stamp()), b.now_ms());
    b.put(put).await?;
    b.backend.mark(&b.namespace, &Mark::Tag("red".into())).await?;
    let page =
        b.backend.scan(Scan { namespace: &b.namespace, pattern: None, after: None, limit: 10 }).await?;
    let listed: Vec<_> = page.entries.into_iter().map(|e| (e.key, e.gone_at_ms, e.sealed_bytes)).collect();
    same("the list", listed, vec![(kept, until, 5)])?;
    let nowhere = Namespace::new("nowhere")?;
    let page = b.backend.scan(Scan { namespace: &nowhere, pattern: None, after: None, limit: 10 }).await?;
    same("the list of an empty namespace", (page.entries.len(), page.next), (0, None))
}

async fn cursor(b: &Bench<'_>) -> Verdict {
    b.set(&b.key("k")?, "v").await?;
    for text in ["", "?", "ünï", "--", "99999999999999999999999999"] {
        let after = Some(Cursor(text.to_owned()));
        let scan = Scan { namespace: &b.namespace, pattern: None, after, limit: 10 };
        let refused = b.backend.scan(scan).await.map(|page| page.entries.len()).map_err(|error| error.kind());
        same(&format!("a scan after \"{text}\""), refused, Err(ErrorKind::Config))?;
    }
    Ok(())
}

async fn namespaces(b: &Bench<'_>) -> Verdict {
    same("of an empty backend", b.backend.namespaces().await?, Vec::new())?;
    let other = Namespace::new("other")?;
    b.set(&b.key("k")?, "v").await?;
    let there = EntryKey::new(&other, "k")?;
    b.set(&there, "v").await?;
    let mut found = b.backend.namespaces().await?;
    found.sort();
    same("of two", found, vec![b.namespace.clone(), other])?;
    b.backend.remove(&there).await?;
    same("after one was emptied", b.backend.namespaces().await?, vec![b.namespace.clone()])
}
