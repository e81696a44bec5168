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
fn many(_a: u8, _b: u8, _c: u8, _d: u8, _e: u8, _f: u8, _g: u8, _h: u8, _i: u8, _j: u8, _k: u8, _l: u8, _m: u8, _n: u8, _o: u8, _p: u8, _q: u8) -> u8 {
    0
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
