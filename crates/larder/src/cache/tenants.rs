//! Whose entries a call is about, in a cache with tenants.
//!
//! The first view of such a cache is *unbound*: each call asks for its tenant and goes on in the tenant's view,
//! or fails. A view of one tenant is an ordinary view of a namespace; nothing below this file knows of tenants.

use super::{Cache, Key, Removal, Shared, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Namespace;
use crate::l1::Space;
use crate::stats::Count;
use crate::tenant::Tenant;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;

/// The view that a call goes on with.
pub(super) enum View<'a, K: Hash + Eq, V: Clone> {
    Own(&'a Cache<K, V>),
    OfTenant(Cache<K, V>),
}

impl<K: Hash + Eq, V: Clone> Deref for View<'_, K, V> {
    type Target = Cache<K, V>;

    #[inline]
    fn deref(&self) -> &Cache<K, V> {
        match self {
            View::Own(cache) => cache,
            View::OfTenant(cache) => cache,
        }
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// The same cache for one tenant: its keys, tags and clears, apart from those of every other tenant. In a
    /// cache with tenants this is the argument that a call needs; in any other it works as well. Takes the
    /// place of a tenant that the view had. Costs one look-up; keep the view where it is used often.
    #[must_use]
    pub fn tenant(&self, tenant: &Tenant) -> Self {
        Cache { space: self.shared.space(&self.space.namespace.of_tenant(tenant)), ..self.clone() }
    }

    /// The tenants that hold entries in some tier, or were used through this cache. For operators: it tells of
    /// all of them, unless this is the view of one.
    ///
    /// # Errors
    /// Those of the tiers.
    pub async fn tenants(&self) -> Result<Vec<Tenant>> {
        if let Some(own) = self.own_tenant() {
            return Ok(vec![own]);
        }
        let mut tenants: Vec<Tenant> =
            self.all_namespaces().await?.iter().filter_map(Namespace::tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        Ok(tenants)
    }

    /// Removes every entry of a tenant, in all namespaces: when a customer leaves. For operators; the view of a
    /// tenant clears only that one.
    ///
    /// # Errors
    /// [`ErrorKind::Tenant`] for another tenant than the view's. [`Unavailable`](ErrorKind::Unavailable) or
    /// [`Unsupported`](ErrorKind::Unsupported) when a tier can't say which namespaces it has: those that are
    /// known are cleared all the same, and the call has to be repeated.
    pub async fn clear_tenant(&self, tenant: &Tenant) -> Result<Removal> {
        if self.own_tenant().is_some_and(|own| own != *tenant) {
            return Err(refused("clear_tenant", "the view belongs to another tenant"));
        }
        self.open()?;
        let (known, outcome) = self.known_namespaces().await;
        let mut removal = Removal::default();
        for namespace in known.iter().filter(|known| known.tenant().as_ref() == Some(tenant)) {
            let view = Cache { space: self.shared.space(namespace), ..self.clone() };
            removal.is_queued |= view.clear().await?.is_queued;
        }
        outcome.map(|()| removal)
    }

    /// The namespaces that are known, and whether every tier could be asked.
    async fn known_namespaces(&self) -> (Vec<Namespace>, Result<()>) {
        let mut known: Vec<Namespace> = self.shared.spaces.lock().keys().cloned().collect();
        let mut outcome = Ok(());
        for tier in &self.shared.tiers {
            let failed =
                |kind, why| Err(Error::new(kind, "scan").backend(tier.name().to_owned()).message(why));
            let listed = match (tier.backend.capabilities().scan, tier.is_aside()) {
                (false, _) => failed(ErrorKind::Unsupported, "it can't list its namespaces"),
                (_, true) => failed(ErrorKind::Unavailable, "it is set aside"),
                _ => tier.namespaces().await,
            };
            match listed {
                Ok(listed) => known.extend(listed),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        known.sort_unstable();
        known.dedup();
        (known, outcome)
    }

    /// This view, or in an unbound one that of the call's tenant.
    ///
    /// # Errors
    /// [`ErrorKind::Tenant`] when there is none, or another one than the namespace names.
    #[inline]
    pub(super) fn view(&self) -> Result<View<'_, K, V>> {
        if self.space.is_unbound() { self.bind().map(View::OfTenant) } else { Ok(View::Own(self)) }
    }

    #[cold]
    fn bind(&self) -> Result<Self> {
        let namespace = &self.space.namespace;
        let tenant = match &self.shared.tenants {
            // Only `namespace` of a tenant's view makes an unbound one then.
            None => Err(refused("view", "the namespace belongs to another tenant than the view")),
            Some(from) => {
                from.ask().ok_or_else(|| refused("view", "no tenant was given, and the cache has tenants"))
            }
        };
        let bound = tenant.and_then(|tenant| match namespace.tenant() {
            Some(other) if other != tenant => {
                Err(refused("view", "the namespace belongs to another tenant than the call"))
            }
            _ => Ok(Cache { space: self.shared.space(&namespace.of_tenant(&tenant)), ..self.clone() }),
        });
        if bound.is_err() {
            self.shared.counters.add(Count::TenantRefused);
        }
        bound
    }

    fn own_tenant(&self) -> Option<Tenant> {
        if self.space.is_unbound() { None } else { self.space.namespace.tenant() }
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// The space of `namespace` for the holder of the view `from`. A tenant's view stays the tenant's.
    pub(super) fn space_beside(&self, from: &Space, namespace: &Namespace) -> Arc<Space> {
        let tenant = from.namespace.tenant();
        match (from.is_unbound(), tenant, namespace.tenant()) {
            (true, ..) => Arc::new(Space::unbound(namespace.clone())),
            (false, Some(own), None) => self.space(&namespace.of_tenant(&own)),
            (false, Some(own), Some(other)) if own != other => Arc::new(Space::unbound(namespace.clone())),
            _ => self.space(namespace),
        }
    }
}

fn refused(operation: &'static str, why: &'static str) -> Error {
    Error::new(ErrorKind::Tenant, operation).message(why)
}
