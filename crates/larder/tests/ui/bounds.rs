use larder::cached;

struct NoKey;

#[cached]
fn not_serializable(id: NoKey) -> Result<u32, larder::Error> {
    drop(id);
    Ok(1)
}

#[derive(serde::Serialize)]
struct NoClone;

#[cached]
fn not_cloneable(id: NoClone) -> u32 {
    drop(id);
    1
}

#[cached]
fn not_a_value(n: u32) -> NoClone {
    drop(n);
    NoClone
}

fn main() {}
