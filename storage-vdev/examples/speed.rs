//! Measures a volume on real directories: `speed DIRECTORY [DATA PARITY]` (build with --release).
//!
//! Prints the rate of 4 KiB write + flush one at a time, of 32 such in one commit, and of
//! sequential writes and reads (healthy, and with m shards lost). Figures depend on the file system
//! and on what else the machine does: run it several times.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use storage_vdev::{
    DirStore, Geometry, Options, Randomness, Step, Volume, VolumeKey, open_directories, sim::Rng,
};

const SIZE: u64 = 256 << 20;
const PIECE: usize = 1 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let directory = args.next().ok_or("usage: speed DIRECTORY [DATA PARITY]")?;
    let data: u8 = args.next().map_or(Ok(4), |count| count.parse())?;
    let parity: u8 = args.next().map_or(Ok(2), |count| count.parse())?;
    let directories: Vec<PathBuf> = (0..data + parity)
        .map(|shard| PathBuf::from(&directory).join(format!("shard-{shard}")))
        .collect();
    let geometry = Geometry::new(data, parity, SIZE)?;
    let open = || -> Result<Volume<DirStore>> {
        let mut random = Randomness { salt: [0; 32], uuid: [0; 16] };
        let mut source = std::fs::File::open("/dev/urandom")?;
        source.read_exact(&mut random.salt)?;
        source.read_exact(&mut random.uuid)?;
        let options = Options { geometry, key: VolumeKey::new(&[7; 32]), create: true };
        Ok(open_directories(&directories, &options, &random)?)
    };
    let start = Instant::now();
    let mut volume = open()?;
    println!("open (made if new)          {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);

    flushes(&mut volume, 1, 2000)?;
    flushes(&mut volume, 32, 200)?;
    sequential_write(&mut volume)?;
    println!("sequential read             {:8.0} MB/s", sequential_read(&mut volume)?);
    volume.close()?;
    drop(volume);
    let start = Instant::now();
    let volume = open()?;
    println!("open again                  {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    drop(volume);

    for shard in directories.iter().take(usize::from(parity)) {
        std::fs::remove_dir_all(shard)?;
    }
    let mut volume = open()?;
    println!("sequential read, {parity} lost     {:8.0} MB/s", sequential_read(&mut volume)?);
    let start = Instant::now();
    while volume.repair_step() == Step::More {}
    let rate = SIZE as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("rebuild of {parity} shards         {rate:8.0} MB/s of volume");
    volume.close()?;
    Ok(())
}

fn flushes(volume: &mut Volume<DirStore>, batch: u64, rounds: u64) -> Result<()> {
    let mut rng = Rng::new(batch);
    let content = [0x5a; 4096];
    let start = Instant::now();
    for _ in 0..rounds {
        for id in 0..batch {
            volume.submit_write(id, rng.below(SIZE / 4096) * 4096, &content);
        }
        volume.submit_flush(batch);
        while let Some(done) = volume.poll() {
            done.result?;
        }
    }
    let rate = (rounds * batch) as f64 / start.elapsed().as_secs_f64();
    println!("4 KiB write, flush every {batch:2} {rate:8.0} writes/s");
    Ok(())
}

fn sequential_write(volume: &mut Volume<DirStore>) -> Result<()> {
    let mut rng = Rng::new(3);
    let mut content = vec![0; PIECE];
    rng.fill(&mut content);
    let start = Instant::now();
    for offset in (0..SIZE).step_by(PIECE) {
        volume.submit_write(offset, offset, &content);
    }
    volume.submit_flush(SIZE);
    while let Some(done) = volume.poll() {
        done.result?;
    }
    let rate = SIZE as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("sequential write and flush  {rate:8.0} MB/s");
    Ok(())
}

fn sequential_read(volume: &mut Volume<DirStore>) -> Result<f64> {
    let mut buffer = vec![0; PIECE];
    let start = Instant::now();
    for offset in (0..SIZE).step_by(PIECE) {
        volume.submit_read(offset, offset, buffer);
        let done = volume.poll().ok_or("no completion")?;
        done.result?;
        buffer = done.buffer;
    }
    Ok(SIZE as f64 / 1e6 / start.elapsed().as_secs_f64())
}
