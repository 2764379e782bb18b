use guest_kernel::net::NetError;
use guest_kernel::net::tcp::{BufferSizes, TcpListener, TcpStream};
use guest_kernel::net::udp::UdpSocket;
use guest_kernel::runtime::Driver;

use crate::world::{World, endpoint, endpoint_v4};

const SIZES: BufferSizes = BufferSizes { receive_bytes: 16 << 10, transmit_bytes: 16 << 10 };

fn two_guests(seed: u64) -> World {
    let mut world = World::new(seed);
    world.guests = vec![world.boot(1, None), world.boot(2, None)];
    world
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

/// Guest 1 echoes what it receives until the peer closes, one connection after the other.
fn serve_echo(world: &World) {
    let (executor, net) = (world.guests[0].executor.clone(), world.guests[0].net.clone());
    drop(executor.clone().spawn(async move {
        let mut listener = TcpListener::bind(&net, 7, 4, SIZES).unwrap();
        loop {
            let mut stream = listener.accept().await;
            drop(executor.spawn(async move {
                let mut buffer = Vec::new();
                while let Ok(1..) = stream.read(&mut buffer, 1 << 20).await {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                    buffer.clear();
                }
            }));
        }
    }));
}

fn echo(world: &mut World, remote: smoltcp::wire::IpEndpoint, len: usize) -> Vec<u8> {
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = executor.clone().spawn(async move {
        let mut stream = TcpStream::connect(&net, remote, SIZES).await.unwrap();
        let sent = pattern(len);
        let mut received = Vec::new();
        // A window's worth at a time, so that neither side waits for the other for ever.
        for piece in sent.chunks(8 << 10) {
            stream.write_all(piece).await.unwrap();
            let wanted = received.len() + piece.len();
            while received.len() < wanted {
                assert_ne!(stream.read(&mut received, wanted).await, Ok(0));
            }
        }
        stream.close();
        assert_eq!(stream.read(&mut received, 1).await, Ok(0), "the peer closes too");
        received
    });
    world.finish(&task)
}

#[test]
fn bytes_come_back_over_both_families() {
    let mut world = two_guests(1);
    serve_echo(&world);
    assert_eq!(echo(&mut world, endpoint(1, 7), 100_000), pattern(100_000));
    assert_eq!(echo(&mut world, endpoint_v4(1, 7), 100_000), pattern(100_000));
}

#[test]
fn bytes_come_back_when_frames_are_lost() {
    for seed in 0..5 {
        let mut world = two_guests(seed);
        world.lose_one_in = 12;
        serve_echo(&world);
        assert_eq!(echo(&mut world, endpoint(1, 7), 60_000), pattern(60_000), "seed {seed}");
    }
}

#[test]
fn super_frames_carry_the_same_bytes_whole_or_cut_with_losses_or_without() {
    for (seed, lose_one_in) in [(1, 0), (2, 12), (3, 12), (4, 40)] {
        let mut world = World::new(seed);
        world.offloads = true;
        world.lose_one_in = lose_one_in;
        world.guests = vec![world.boot(1, None), world.boot(2, None)];
        serve_echo(&world);
        assert_eq!(echo(&mut world, endpoint(1, 7), 200_000), pattern(200_000), "seed {seed}");
        assert_eq!(echo(&mut world, endpoint_v4(1, 7), 50_000), pattern(50_000), "seed {seed}");
        assert!(world.super_frames() > 10, "seed {seed}: {}", world.super_frames());
    }
}

#[test]
fn a_queue_of_four_frames_is_enough() {
    let mut world = World::new(1);
    world.queue_size = 4;
    world.guests = vec![world.boot(1, None), world.boot(2, None)];
    serve_echo(&world);
    assert_eq!(echo(&mut world, endpoint(1, 7), 100_000), pattern(100_000));
}

#[test]
fn a_closed_port_refuses_and_a_missing_peer_stays_silent() {
    let mut world = two_guests(1);
    let (executor, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = executor.clone().spawn(async move {
        let refused = TcpStream::connect(&net, endpoint(1, 9), SIZES).await.map(drop);
        assert_eq!(refused, Err(NetError::Reset));
        let own = TcpStream::connect(&net, endpoint(2, 9), SIZES).await.map(drop);
        assert_eq!(own, Err(NetError::Unaddressable));
        let missing = TcpStream::connect(&net, endpoint(9, 9), SIZES);
        assert!(executor.timeout(3_000_000_000, missing).await.is_none());
    });
    world.finish(&task);
}

#[test]
fn dropped_connections_do_not_pile_up() {
    let mut world = two_guests(1);
    serve_echo(&world);
    for _ in 0..100 {
        echo(&mut world, endpoint(1, 7), 10);
    }
    // Four in the server's backlog; on this side some linger in TIME-WAIT.
    assert!(world.guests[0].net.socket_count() <= 8);
    assert!(world.guests[1].net.socket_count() <= 34, "{}", world.guests[1].net.socket_count());
    let clock = world.guests[1].executor.clone();
    let later = clock.clone().spawn(async move { clock.sleep(60_000_000_000).await });
    world.finish(&later);
    assert_eq!(world.guests[1].net.socket_count(), 0);
}

#[test]
fn a_port_is_bound_once() {
    let world = two_guests(1);
    let net = &world.guests[0].net;
    let first = TcpListener::bind(net, 80, 2, SIZES).unwrap();
    assert_eq!(TcpListener::bind(net, 80, 2, SIZES).err(), Some(NetError::PortInUse));
    assert_eq!(TcpListener::bind(net, 0, 2, SIZES).err(), Some(NetError::Unaddressable));
    drop(first);
    net.poll(0);
    assert!(TcpListener::bind(net, 80, 2, SIZES).is_ok());
}

#[test]
fn datagrams_arrive_with_their_sender() {
    let mut world = two_guests(1);
    let (server, net) = (world.guests[0].executor.clone(), world.guests[0].net.clone());
    drop(server.spawn(async move {
        let socket = UdpSocket::bind(&net, 53).unwrap();
        assert_eq!(UdpSocket::bind(&net, 53).err(), Some(NetError::PortInUse));
        loop {
            let (datagram, from) = socket.receive_from().await;
            socket.send_to(&datagram, from).await.unwrap();
        }
    }));
    let (client, net) = (world.guests[1].executor.clone(), world.guests[1].net.clone());
    let task = client.spawn(async move {
        let socket = UdpSocket::bind(&net, 0).unwrap();
        for remote in [endpoint(1, 53), endpoint_v4(1, 53)] {
            socket.send_to(b"ping", remote).await.unwrap();
            assert_eq!(socket.receive_from().await, (b"ping".to_vec(), remote));
        }
        let too_long = socket.send_to(&[0; 70_000], endpoint(1, 53)).await;
        assert_eq!(too_long, Err(NetError::Unaddressable));
    });
    world.finish(&task);
}
