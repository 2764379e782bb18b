//! kill -9 of the server: what a client was told is durable is there afterwards, and what is there
//! is a prefix of what it wrote.
//!
//! One writer at a time; each sector that it writes carries its own place and the number of the
//! write. `HYPHA_KILLS` chooses how many kills.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use storage_vdev::files::sim::Rng;

use crate::client::{Client, FLUSH, FUA, WRITE, WRITE_ZEROES};
use crate::server::{Server, folder};

const SECTOR: usize = 512;
/// So few that writes overwrite each other.
const SECTORS: u64 = 4096;
const SECTORS_PER_WRITE: u64 = 16;
/// The number of the write, and whether it zeroed.
type Stamp = (u64, bool);

/// What was written, and what of it is promised.
#[derive(Default)]
struct History {
    /// For each sector the stamps of the writes that touched it, oldest first.
    sectors: BTreeMap<u64, Vec<Stamp>>,
    /// The number of the last write that was sent.
    issued: u64,
    /// The number of the last write that is durable for sure.
    durable: u64,
}

fn sector(lba: u64, write: u64) -> Vec<u8> {
    [lba.to_le_bytes(), write.to_le_bytes()].concat().repeat(SECTOR / 16)
}

/// The stamp that a sector carries.
fn stamp(lba: u64, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let write = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert!(bytes == sector(lba, write), "sector {lba} is torn or misplaced");
    write
}

impl History {
    /// Writes and flushes until the server dies.
    fn write_until_death(&mut self, client: &mut Client, rng: &mut Rng) -> io::Result<()> {
        loop {
            let batch = 1 + rng.below(8);
            let mut asked = 0;
            for _ in 0..batch {
                self.issue(client, rng, 0)?;
                asked += 1;
            }
            let covered = match rng.below(4) {
                0 => {
                    // Only that one write is promised, and by its place in the prefix all before it.
                    self.issue(client, rng, FUA)?;
                    Some(self.issued)
                }
                1 => None,
                _ => {
                    client.request((FLUSH, 0), 0, 0, &[])?;
                    Some(self.issued)
                }
            };
            for _ in 0..asked + u64::from(covered.is_some()) {
                let (_, error) = client.reply()?;
                assert_eq!(error, 0);
            }
            self.durable = covered.unwrap_or(self.durable);
        }
    }

    fn issue(&mut self, client: &mut Client, rng: &mut Rng, flags: u16) -> io::Result<()> {
        let count = 1 + rng.below(SECTORS_PER_WRITE);
        let first = rng.below(SECTORS - count);
        let zeroes = rng.below(8) == 0;
        self.issued += 1;
        for lba in first..first + count {
            self.sectors.entry(lba).or_default().push((self.issued, zeroes));
        }
        let len = count as u32 * SECTOR as u32;
        let offset = first * SECTOR as u64;
        if zeroes {
            client.request((WRITE_ZEROES, flags), offset, len, &[])?;
        } else {
            let lbas = first..first + count;
            let data: Vec<u8> = lbas.flat_map(|lba| sector(lba, self.issued)).collect();
            client.request((WRITE, flags), offset, len, &data)?;
        }
        Ok(())
    }

    /// Looks at the whole volume: which prefixes of the writes does it show? Takes the longest as
    /// what is there.
    fn check(&mut self, client: &mut Client) {
        let bytes = client.read(0, (SECTORS as usize * SECTOR) as u32);
        // The volume shows the writes up to some number `last`: each sector narrows it down.
        let (mut least, mut most) = (self.durable, self.issued);
        for (lba, found) in (0..).zip(bytes.chunks(SECTOR)) {
            let found = stamp(lba, found);
            let stamps = self.sectors.get(&lba).map_or(&[][..], Vec::as_slice);
            let shows = |(write, zeroed): &Stamp| if *zeroed { 0 } else { *write };
            // Every stretch of `last` in which this sector looks like that. Zeroes can be many.
            let mut fits = Vec::new();
            let starts = std::iter::once(&(0, true)).chain(stamps);
            let ends = stamps.iter().map(|(write, _)| *write - 1).chain([u64::MAX]);
            for (start, end) in starts.zip(ends) {
                if shows(start) == found && end >= least && start.0 <= most {
                    fits.push((start.0, end));
                }
            }
            let (Some(first), Some(last)) = (fits.first(), fits.last()) else {
                panic!(
                    "sector {lba} shows write {found}; durable up to {}, issued up to {}, and the \
                     other sectors show {least} to {most}; its writes: {stamps:?}",
                    self.durable, self.issued
                );
            };
            (least, most) = (least.max(first.0), most.min(last.1));
        }
        // What was issued behind the prefix never happened.
        self.issued = most;
        self.durable = most;
        for stamps in self.sectors.values_mut() {
            stamps.retain(|(write, _)| *write <= most);
            // What was overwritten for good can't come back.
            stamps.drain(..stamps.len().saturating_sub(1));
        }
    }
}

#[test]
fn a_killed_server_keeps_what_it_promised_and_a_prefix_of_the_rest() {
    let kills = std::env::var("HYPHA_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let seed = std::env::var("HYPHA_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(11);
    println!("HYPHA_SEED={seed} HYPHA_KILLS={kills}");
    let mut rng = Rng::new(seed);
    let folder = folder();
    let mut history = History::default();
    for kill in 0..kills {
        let server = Server::nbd(folder.path(), &[]);
        let mut client = Client::connected(&server.socket());
        history.check(&mut client);
        let patience = Duration::from_micros(rng.below(300_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(patience);
            server.kill();
        });
        let lost = history.write_until_death(&mut client, &mut rng);
        killer.join().unwrap();
        assert!(lost.is_err(), "the server was killed");
        println!("kill {kill}: {} writes, {} of them promised", history.issued, history.durable);
    }
    let server = Server::nbd(folder.path(), &[]);
    let mut client = Client::connected(&server.socket());
    history.check(&mut client);
    client.request((FLUSH, 0), 0, 0, &[]).unwrap();
    assert_eq!(client.reply().unwrap().1, 0);
}
