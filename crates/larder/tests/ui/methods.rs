use larder::cached;

struct NoClone;

impl NoClone {
    #[cached]
    async fn method(&self, n: u32) -> u32 {
        n
    }
}

struct Repo;

impl Repo {
    #[cached]
    fn associated_without_saying_so(n: u32) -> u32 {
        n
    }
}

#[cached]
fn of_the_same_name(n: u32) -> u32 {
    n
}

impl Repo {
    #[cached]
    fn of_the_same_name(n: u32) -> u32 {
        n + 1
    }
}

fn main() {}
