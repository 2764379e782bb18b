//! Measures a volume on real directories: `speed DIRECTORY [DATA PARITY [POLICY]]` (--release).
//!
//! Prints the rate of 4 KiB write + flush one at a time, of 32 such in one commit, and of
//! sequential writes and reads (healthy, and with m shards lost
//! and being rebuilt). Figures depend on the file system
//! and on what else the machine does: run it several times.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use storage_vdev::dir_nodes::DirNodes;
use storage_vdev::engine::{Completion, Limits, Policy, Volume};
use storage_vdev::files::sim::Rng;
use storage_vdev::{Geometry, Options, VolumeKey, open_directories};

const SIZE: u64 = 256 << 20;
const PIECE: usize = 1 << 20;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let directory =
        args.next().ok_or("usage: speed DIRECTORY [DATA PARITY [local|quorum|sealed]]")?;
    let data: u8 = args.next().map_or(Ok(4), |count| count.parse())?;
    let parity: u8 = args.next().map_or(Ok(2), |count| count.parse())?;
    let directories: Vec<PathBuf> = (0..data + parity)
        .map(|shard| PathBuf::from(&directory).join(format!("shard-{shard}")))
        .collect();
    let geometry = Geometry::new(data, parity, SIZE)?;
    let policy = match args.next().as_deref() {
        Some("local") => Policy::Local,
        Some("sealed") => Policy::Sealed,
        _ => Policy::Quorum,
    };
    let open = || -> Result<Volume<DirNodes>> {
        let mut random = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
        let (key, limits) = (VolumeKey::new(&[7; 32]), Limits::LARGE);
        let options = Options { geometry, key, create: true, policy, limits };
        Ok(open_directories(&directories, &options, &random, 0)?)
    };
    let start = Instant::now();
    let mut volume = open()?;
    println!("open (made if new)          {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);

    flushes(&mut volume, 1, 2000)?;
    flushes(&mut volume, 32, 200)?;
    sequential_write(&mut volume)?;
    random_reads(&mut volume, 4096, 20_000)?;
    random_reads(&mut volume, 65536, 4000)?;
    println!("sequential read             {:8.0} MB/s", sequential_read(&mut volume)?);
    close(volume)?;
    let start = Instant::now();
    let volume = open()?;
    println!("open again                  {:8.1} ms", start.elapsed().as_secs_f64() * 1e3);
    close(volume)?;

    for shard in directories.iter().take(usize::from(parity)) {
        std::fs::remove_dir_all(shard)?;
    }
    let mut volume = open()?;
    println!("sequential read, {parity} lost     {:8.0} MB/s", sequential_read(&mut volume)?);
    close(volume)
}

fn flushes(volume: &mut Volume<DirNodes>, batch: u64, rounds: u64) -> Result<()> {
    let mut rng = Rng::new(batch);
    let content = [0x5a; 4096];
    let start = Instant::now();
    for _ in 0..rounds {
        for id in 0..batch {
            volume.submit_write(id, rng.below(SIZE / 4096) * 4096, &content);
        }
        volume.submit_flush(batch);
        while let Some(done) = volume.poll(0) {
            done.result?;
        }
    }
    let rate = (rounds * batch) as f64 / start.elapsed().as_secs_f64();
    println!("4 KiB write, flush every {batch:2} {rate:8.0} writes/s");
    Ok(())
}

/// Polls until request `id` is done. Directories answer inside `poll`, so the clock only serves
/// what waits for a time.
fn finish(volume: &mut Volume<DirNodes>, id: u64) -> Result<Completion> {
    let mut now_ns = 0;
    loop {
        while let Some(done) = volume.poll(now_ns) {
            if done.id == id {
                return Ok(done);
            }
            done.result?;
        }
        now_ns = volume.deadline_ns().ok_or("no completion")?.max(now_ns + 1);
    }
}

fn close(mut volume: Volume<DirNodes>) -> Result<()> {
    volume.submit_close(1);
    finish(&mut volume, 1)?.result?;
    Ok(())
}

fn random_reads(volume: &mut Volume<DirNodes>, len: usize, count: u64) -> Result<()> {
    let mut rng = Rng::new(len as u64);
    let mut buffers: Vec<Vec<u8>> = (0..32).map(|_| vec![0; len]).collect();
    let (start, mut done) = (Instant::now(), 0);
    while done < count {
        for buffer in buffers.drain(..) {
            let at = rng.below(SIZE / len as u64) * len as u64;
            volume.submit_read(at, at, buffer);
        }
        while let Some(read) = volume.poll(0) {
            read.result?;
            buffers.push(read.buffer);
            done += 1;
        }
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    let megabytes = rate * len as f64 / 1e6;
    println!("random read of {len:5}, depth 32 {rate:8.0} reads/s, {megabytes:.0} MB/s");
    Ok(())
}

fn sequential_write(volume: &mut Volume<DirNodes>) -> Result<()> {
    let mut rng = Rng::new(3);
    let mut content = vec![0; PIECE];
    rng.fill(&mut content);
    let start = Instant::now();
    for offset in (0..SIZE).step_by(PIECE) {
        volume.submit_write(offset, offset, &content);
    }
    volume.submit_flush(SIZE);
    while let Some(done) = volume.poll(0) {
        done.result?;
    }
    let rate = SIZE as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("sequential write and flush  {rate:8.0} MB/s");
    Ok(())
}

fn sequential_read(volume: &mut Volume<DirNodes>) -> Result<f64> {
    let mut buffer = vec![0; PIECE];
    let start = Instant::now();
    for offset in (0..SIZE).step_by(PIECE) {
        volume.submit_read(offset, offset, buffer);
        let done = volume.poll(0).ok_or("no completion")?;
        done.result?;
        buffer = done.buffer;
    }
    Ok(SIZE as f64 / 1e6 / start.elapsed().as_secs_f64())
}
