use larder::cached;

#[cached]
fn no_value(n: u32) {
    drop(n);
}

#[cached]
fn unit(n: u32) -> () {
    drop(n);
}

#[cached]
const fn constant(n: u32) -> u32 {
    n
}

#[cached]
unsafe fn dangerous(n: u32) -> u32 {
    n
}

#[cached]
extern "C" fn foreign(n: u32) -> u32 {
    n
}

#[cached]
fn generic<T: ToString>(n: T) -> String {
    n.to_string()
}

#[cached]
fn const_generic<const N: usize>(n: [u8; N]) -> usize {
    n.len()
}

#[cached]
fn returns_impl(n: u32) -> impl Iterator<Item = u32> {
    0..n
}

#[cached]
fn returns_reference(text: &str) -> &str {
    text
}

#[cached]
fn returns_borrowed(text: &str) -> Vec<std::borrow::Cow<'_, str>> {
    vec![text.into()]
}

#[cached]
struct NoFunction;

fn main() {}
