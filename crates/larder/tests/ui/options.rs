use larder::cached;

#[cached(tll = "5m")]
fn misspelt(n: u32) -> u32 {
    n
}

#[cached(ttl = "5 minutes")]
fn no_duration(n: u32) -> u32 {
    n
}

#[cached(ttl = true)]
fn no_duration_at_all(n: u32) -> u32 {
    n
}

#[cached(ttl = "5m", ttl = "6m")]
fn twice(n: u32) -> u32 {
    n
}

#[cached(key)]
fn without_a_value(n: u32) -> u32 {
    n
}

#[cached("5m")]
fn without_a_name(n: u32) -> u32 {
    n
}

#[cached(tags = "users")]
fn no_list(n: u32) -> u32 {
    n
}

#[cached(namespace = "my users")]
fn no_namespace(n: u32) -> u32 {
    n
}

#[cached(entries_max = 0)]
fn no_room(n: u32) -> u32 {
    n
}

#[cached(refresh_after = 80)]
fn no_share(n: u32) -> u32 {
    n
}

#[cached(cache_none = false)]
fn no_option(n: u32) -> u32 {
    n
}

#[cached(cache = CACHE, entries_max = 5)]
fn two_limits(n: u32) -> u32 {
    n
}

fn main() {}
