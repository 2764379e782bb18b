//! Those who have connected and not yet said who they are: few at once, and none for long.
//!
//! Whoever opens connections and says nothing must keep nobody else out. So one too many is let in all the
//! same, and another is turned away for it: of those that come from where most come from, the one that has
//! waited longest.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many there may be at once.
pub(super) const STRANGERS_MAX: usize = 64;

/// The connections, in the order in which they came.
#[derive(Default)]
pub(super) struct Strangers {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    last: u64,
    waiting: Vec<Stranger>,
}

struct Stranger {
    number: u64,
    origin: IpAddr,
    stream: TcpStream,
}

/// Where a connection comes from, as far as one host can't choose it: of IPv6 the upper half.
pub(super) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

impl Strangers {
    /// Lets one in. Returns its number, and whether another was turned away for it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn enter(&self, origin: IpAddr, stream: &TcpStream) -> io::Result<(u64, bool)> {
        let stream = stream.try_clone()?;
        let mut inside = self.lock();
        inside.last += 1;
        let number = inside.last;
        let turned_away = inside.waiting.len() >= STRANGERS_MAX;
        if turned_away {
            inside.turn_away();
        }
        inside.waiting.push(Stranger { number, origin, stream });
        Ok((number, turned_away))
    }

    /// One is no stranger any more, or has gone.
    pub(super) fn leave(&self, number: u64) {
        self.lock().waiting.retain(|stranger| stranger.number != number);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn turn_away(&mut self) {
        let mut crowds: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for stranger in &self.waiting {
            *crowds.entry(stranger.origin).or_default() += 1;
        }
        let largest = crowds.into_iter().max_by_key(|(_, size)| *size);
        let place = largest.and_then(|(origin, _)| {
            self.waiting.iter().position(|stranger| stranger.origin == origin)
        });
        if let Some(place) = place {
            // Whoever serves it sees its end. One that is closed already needs no closing.
            _ = self.waiting.remove(place).stream.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_crowd_from_one_place_turns_away_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let strangers = Strangers::default();
        let crowd: IpAddr = "192.0.2.1".parse().unwrap();
        let (early, late) = ("192.0.2.2".parse().unwrap(), "192.0.2.3".parse().unwrap());
        let waits = |number: u64| strangers.lock().waiting.iter().any(|it| it.number == number);
        assert_eq!(strangers.enter(early, &stream).unwrap(), (1, false));
        for number in 2..=STRANGERS_MAX as u64 {
            assert_eq!(strangers.enter(crowd, &stream).unwrap(), (number, false));
        }
        assert_eq!(strangers.enter(late, &stream).unwrap(), (65, true));
        assert!(waits(1) && !waits(2) && waits(3) && waits(65));
        for number in 66..300 {
            assert_eq!(strangers.enter(crowd, &stream).unwrap(), (number, true));
        }
        assert!(waits(1) && waits(65) && waits(299) && !waits(200));
        strangers.leave(1);
        assert_eq!(strangers.enter(crowd, &stream).unwrap(), (300, false));
        assert_eq!(strangers.lock().waiting.len(), STRANGERS_MAX);
    }

    #[test]
    fn a_host_has_one_origin_whatever_address_it_takes_of_its_network() {
        let of = |text: &str| origin(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
