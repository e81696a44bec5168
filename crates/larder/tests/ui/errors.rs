use larder::cached;

#[derive(Debug)]
struct NoConversion;

#[cached]
async fn no_conversion(n: u32) -> Result<u32, NoConversion> {
    Ok(n)
}

fn main() {}
