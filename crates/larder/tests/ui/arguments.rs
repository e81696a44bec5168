use larder::cached;
use std::fmt::Display;

#[cached]
fn mutable(n: &mut u32) -> u32 {
    *n
}

#[cached]
fn any(n: impl Display) -> String {
    n.to_string()
}

#[cached]
fn object(n: &dyn Display) -> String {
    n.to_string()
}

#[cached]
fn reference_inside(n: Option<&str>) -> usize {
    n.map_or(0, str::len)
}

#[cached]
fn lifetime_inside(n: std::borrow::Cow<'_, str>) -> usize {
    n.len()
}

#[rustfmt::skip]
#[cached]
fn many(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8, m: u8, n: u8, o: u8, p: u8, q: u8) -> u8 {
    a
}

struct Repo;

impl Repo {
    #[cached]
    fn consumes(self) -> u32 {
        1
    }

    #[cached]
    fn changes(&mut self) -> u32 {
        1
    }
}

fn main() {}
