//! What a cache may answer: for each key, the versions that nobody removed or overwrote.

use super::Place;
use std::collections::HashMap;

/// One value, or a remembered absence, with its times on the monotonic clock.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    value: Option<u64>,
    made: u64,
    ttl: u64,
    fresh_until: u64,
    revalidate_until: u64,
    gone_at: u64,
    pub(crate) tags: Vec<usize>,
    /// The wall clock jumped since it was made: a tier may think that it is older or younger.
    has_jumped: bool,
    /// Whether it may be in L1 alone.
    may_be_lost: bool,
}

impl Version {
    pub(crate) fn new(
        value: Option<u64>,
        now: u64,
        ttl: u64,
        tags: Vec<usize>,
        revalidate: u64,
        on_error: u64,
    ) -> Self {
        let fresh_until = now.saturating_add(ttl);
        let (revalidate, on_error) = if value.is_some() { (revalidate, on_error) } else { (0, 0) };
        let revalidate_until = fresh_until.saturating_add(revalidate);
        let gone_at = fresh_until.saturating_add(on_error).max(revalidate_until);
        Version {
            value,
            made: now,
            ttl,
            fresh_until,
            revalidate_until,
            gone_at,
            tags,
            has_jumped: false,
            may_be_lost: false,
        }
    }

    /// A value that was renewed reaches no tier below the one that it was found in.
    pub(crate) fn may_be_lost(mut self) -> Self {
        self.may_be_lost = true;
        self
    }
}

/// What is allowed, and in a lossless configuration, what is due.
pub(crate) struct Reference {
    live: HashMap<Place, Vec<Version>>,
    is_lossless: bool,
    is_sliding: bool,
}

impl Reference {
    pub(crate) fn new(is_lossless: bool, is_sliding: bool) -> Self {
        Reference { live: HashMap::new(), is_lossless, is_sliding }
    }

    /// A set: nothing older may be seen again.
    pub(crate) fn store(&mut self, place: Place, version: Version) {
        self.live.insert(place, vec![version]);
    }

    /// A load: what is older may still be in a tier that failed, or that answers before the write-back.
    pub(crate) fn store_loaded(&mut self, place: Place, version: Version) {
        if version.ttl == 0 {
            // An absence that is not remembered may have taken the place of what was there.
            if version.value.is_none() {
                let before = self.live.entry(place).or_default();
                let is_lossless = self.is_lossless;
                before.retain_mut(|version| {
                    version.may_be_lost = true;
                    version.has_jumped || !is_lossless
                });
            }
            return;
        }
        let versions = self.live.entry(place).or_default();
        if self.is_lossless && !version.may_be_lost {
            versions.clear();
        }
        versions.push(version);
    }

    pub(crate) fn remove(&mut self, place: Place) {
        self.live.remove(&place);
    }

    pub(crate) fn remove_if(&mut self, is_removed: impl Fn(Place, &Version) -> bool) {
        for (place, versions) in &mut self.live {
            versions.retain(|version| !is_removed(*place, version));
        }
    }

    pub(crate) fn jump(&mut self) {
        self.live.values_mut().flatten().for_each(|version| version.has_jumped = true);
    }

    fn versions(&self, place: Place) -> &[Version] {
        self.live.get(&place).map(Vec::as_slice).unwrap_or_default()
    }

    fn is_allowed(&self, place: Place, value: Option<u64>, is_in_time: impl Fn(&Version) -> bool) -> bool {
        self.versions(place)
            .iter()
            .any(|version| version.value == value && (version.has_jumped || is_in_time(version)))
    }

    /// The version that has to be found.
    fn due(&self, place: Place, now: u64) -> Option<&Version> {
        let version = self.versions(place).last().filter(|_| self.is_lossless)?;
        (!version.has_jumped && !version.may_be_lost && now < version.fresh_until).then_some(version)
    }

    #[track_caller]
    fn refuse(&self, what: &str, place: Place, now: u64) -> ! {
        panic!("{what} at {now} of {place:?}, where {:?} is known", self.versions(place))
    }

    /// A hit of a sliding entry renews it.
    fn slide(&mut self, place: Place, value: u64, now: u64) {
        let versions = self.live.get_mut(&place).into_iter().flatten();
        for version in versions.filter(|version| self.is_sliding && version.value == Some(value)) {
            let windows =
                (version.revalidate_until - version.fresh_until, version.gone_at - version.fresh_until);
            version.fresh_until = version.fresh_until.max(now.saturating_add(version.ttl));
            version.revalidate_until = version.fresh_until.saturating_add(windows.0);
            version.gone_at = version.fresh_until.saturating_add(windows.1);
        }
    }

    pub(crate) fn check_get(&mut self, place: Place, got: Option<u64>, now: u64) {
        match got {
            Some(value) => {
                if !self.is_allowed(place, Some(value), |version| now < version.fresh_until) {
                    self.refuse(&format!("get returned {value}"), place, now);
                }
                self.slide(place, value, now);
            }
            None => {
                if self.due(place, now).is_some_and(|version| version.value.is_some()) {
                    self.refuse("get returned nothing", place, now);
                }
            }
        }
        if let (Some(value), Some(due)) = (got, self.due(place, now))
            && due.value != Some(value)
        {
            self.refuse(&format!("get returned {value}"), place, now);
        }
    }

    pub(crate) fn check_lookup(&mut self, place: Place, hit: Option<(u64, bool)>, stale: bool, now: u64) {
        match hit {
            Some((value, false)) => self.check_get(place, Some(value), now),
            Some((value, true)) => {
                // A tier's copy does not slide.
                if !self.is_allowed(place, Some(value), |version| {
                    (self.is_sliding || now >= version.fresh_until) && now < version.gone_at
                }) {
                    self.refuse(&format!("lookup returned stale {value}"), place, now);
                }
            }
            None => {
                self.check_get(place, None, now);
                let last = self.versions(place).last();
                let is_due = last.is_some_and(|version| {
                    version.value.is_some()
                        && !version.has_jumped
                        && !version.may_be_lost
                        && now < version.gone_at
                });
                if stale && is_due && self.is_lossless {
                    self.refuse("lookup returned nothing stale", place, now);
                }
            }
        }
    }

    /// A load was answered with something that its loader did not make.
    pub(crate) fn check_served(
        &mut self,
        place: Place,
        got: u64,
        was_called: bool,
        by_loader: bool,
        now: u64,
    ) {
        let is_in_time = |version: &Version| {
            now < version.fresh_until
                || (was_called && now < version.revalidate_until)
                || (by_loader && now < version.gone_at)
        };
        if !self.is_allowed(place, Some(got), is_in_time) {
            self.refuse(&format!("a load returned {got} (loader called: {was_called})"), place, now);
        }
        if !was_called {
            self.slide(place, got, now);
        }
    }

    /// A load failed, although something stale may have been at hand.
    pub(crate) fn check_failed(&self, place: Place, now: u64) {
        let last = self.versions(place).last();
        if self.is_lossless
            && last.is_some_and(|v| v.value.is_some() && !v.has_jumped && !v.may_be_lost && now < v.gone_at)
        {
            self.refuse("a load failed with a stale value at hand", place, now);
        }
    }

    /// The loader was called.
    pub(crate) fn check_called(&self, place: Place, now: u64) {
        if self.due(place, now).is_some() {
            self.refuse("the loader was called for what is fresh", place, now);
        }
    }

    /// The loader was told of a value from before.
    pub(crate) fn check_previous(&self, place: Place, previous: u64) {
        if !self.is_allowed(place, Some(previous), |_| true) {
            self.refuse(&format!("the loader was told of {previous}"), place, 0);
        }
    }

    pub(crate) fn knows_absence(&self, place: Place, now: u64) -> bool {
        // Sliding absences slide, too: their end is unknown.
        self.is_allowed(place, None, |version| self.is_sliding || now < version.fresh_until)
    }

    pub(crate) fn tags(&self, place: Place, value: u64) -> Vec<usize> {
        let mut of_value = self.versions(place).iter().filter(|version| version.value == Some(value));
        of_value.next_back().map(|version| version.tags.clone()).unwrap_or_default()
    }

    pub(crate) fn check_expire(&mut self, place: Place, was_there: bool, renewed: &Version, now: u64) {
        let due = self.due(place, now).is_some_and(|version| version.value.is_some());
        let is_possible = self
            .versions(place)
            .iter()
            .any(|version| version.value.is_some() && (version.has_jumped || now < version.fresh_until));
        if was_there != due
            && (self.is_lossless && !self.versions(place).iter().any(|v| v.has_jumped || v.may_be_lost))
            || was_there && !is_possible
        {
            self.refuse(&format!("expire said {was_there}"), place, now);
        }
        if !was_there {
            return;
        }
        // Which one was renewed is only known in a lossless configuration.
        let renewed_versions: Vec<Version> = self
            .versions(place)
            .iter()
            .filter(|version| version.value.is_some() && version.made <= now)
            .map(|version| Version {
                value: version.value,
                tags: version.tags.clone(),
                has_jumped: version.has_jumped,
                may_be_lost: version.may_be_lost,
                ..renewed.clone()
            })
            .collect();
        let versions = self.live.entry(place).or_default();
        if self.is_lossless {
            versions.clear();
        }
        versions.extend(renewed_versions);
    }
}
