//! Methods: whose values share entries.

use super::*;

#[derive(Clone)]
struct Repo {
    tenant: u32,
    runs: Arc<AtomicUsize>,
    entries: Cache<EntryKey, usize>,
}

impl Repo {
    fn new(tenant: u32) -> Self {
        Repo { tenant, runs: Arc::default(), entries: Cache::builder().build().unwrap() }
    }

    #[cached(key = (self.tenant, id))]
    async fn find(&self, id: u64) -> usize {
        run(&self.runs) + id as usize
    }

    #[cached(cache = self.entries)]
    fn own(&self, id: u64) -> usize {
        run(&self.runs) + id as usize
    }

    #[cached]
    async fn through_arc(self: &Arc<Self>, id: u64) -> Result<usize, larder::Error> {
        Ok(run(&self.runs) + id as usize)
    }

    #[cached]
    async fn by_arc(self: Arc<Self>) -> usize {
        run(&self.runs)
    }

    #[cached(associated)]
    fn lengths(text: &str) -> usize {
        text.len()
    }

    #[cached(associated, key = tenant, cache_none = false)]
    fn open(tenant: u32) -> Option<Self> {
        (tenant > 0).then(|| Repo::new(tenant))
    }
}

#[tokio::test]
async fn a_method_keeps_what_its_key_says_for_all_its_values() {
    let (one, two) = (Repo::new(1), Repo::new(2));
    assert_eq!((one.find(5).await, one.find(5).await, two.find(5).await), (6, 6, 6));
    assert_eq!((one.runs.load(SeqCst), two.runs.load(SeqCst)), (1, 1));
    one.find_invalidate(5).await.unwrap();
    assert_eq!(one.find(5).await, 7);
    assert!(Repo::find_cache().namespace_name().as_str().ends_with("methods::Repo::find"));
    let arc = Arc::new(one.clone());
    let first = arc.through_arc(1).await.unwrap();
    assert_eq!(arc.through_arc(1).await.unwrap(), first);
    assert_eq!(arc.clone().by_arc().await, arc.clone().by_arc().await);
    assert_eq!((Repo::lengths("abc"), Repo::lengths_if_cached("abc")), (3, Some(3)));
    assert!(Arc::ptr_eq(&Repo::open(1).unwrap().runs, &Repo::open(1).unwrap().runs));
}

#[test]
fn a_cache_in_a_field_is_each_values_own() {
    let (one, two) = (Repo::new(1), Repo::new(1));
    assert_eq!((one.own(5), one.own(5), two.own(5)), (6, 6, 6));
    assert_eq!(two.runs.load(SeqCst), 1);
    assert_eq!(one.own_cache().stats().entries, 1);
}

#[test]
fn types_of_one_generic_impl_have_caches_of_their_own() {
    #[derive(Clone)]
    struct Sized<T>(T);
    impl<T: Clone + Send + Sync + 'static> Sized<T> {
        #[cached]
        fn bytes(&self) -> usize {
            size_of::<T>()
        }
    }
    assert_eq!((Sized(1_u8).bytes(), Sized(1_u64).bytes(), Sized(2_u8).bytes()), (1, 8, 1));
}
