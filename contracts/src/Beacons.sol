// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IBeacon} from "./Interfaces.sol";

/// @notice The last 256 seeds, one word each: 64 bits of round, 192 bits of seed.
abstract contract SeedRing is IBeacon {
    uint256 private constant SIZE = 256;
    bytes32[256] private ring;
    uint64 internal newest;

    event Seed(uint64 indexed round, bytes32 seed);

    error NotKept(uint64 round);

    /// A round so old that its place is a newer one's is refused: it would take the newest seed away.
    function keep(uint64 round, bytes32 entropy) internal {
        require(round >= newest || newest - round < SIZE, NotKept(round));
        uint192 half = uint192(uint256(entropy));
        ring[round % SIZE] = bytes32((uint256(round) << 192) | half);
        if (round > newest) newest = round;
        emit Seed(round, expand(round, half));
    }

    function kept(uint64 round) internal view returns (bytes32) {
        uint256 word = uint256(ring[round % SIZE]);
        require(word != 0 && word >> 192 == round, NotKept(round));
        return expand(round, uint192(word));
    }

    function expand(uint64 round, uint192 half) private view returns (bytes32) {
        return keccak256(abi.encodePacked("hypha seed", block.chainid, address(this), round, half));
    }
}

/// @title The beacon of the chain itself: a round is a block, its seed comes from prevrandao.
/// @notice On the embedded chain prevrandao comes from a hash chain that its genesis commits to: its
/// producer foresees it, nobody else does. On Ethereum a proposer can withhold a block: one bit.
contract PrevrandaoBeacon is SeedRing {
    /// @notice Keeps this block's seed for later; anyone may.
    function record() external returns (uint64 round) {
        round = uint64(block.number);
        keep(round, bytes32(block.prevrandao));
    }

    function current() external view returns (uint64 round, bytes32 seed_) {
        round = uint64(block.number);
        seed_ = keccak256(
            abi.encodePacked("hypha current", block.chainid, address(this), round, block.prevrandao)
        );
    }

    function seed(uint64 round) external view returns (bytes32) {
        return kept(round);
    }
}

/// @title drand's quicknet: one signature over each round's number, of a threshold of its members.
/// @notice Unchained BLS on BLS12-381, signatures in G1 (RFC 9380 hash to curve), a round every three
/// seconds. Verified with the precompiles of EIP-2537.
contract DrandBeacon is SeedRing {
    /// The field's prime, for the base-field reductions and the sign of a point.
    uint256 private constant P_HIGH = 0x1a0111ea397fe69a4b1ba7b6434bacd7;
    uint256 private constant P_LOW =
        0x64774b84f38512bf6730d2a0f6b0f6241eabfffeb153ffffb9feffffffffaaab;
    /// (p - 1) / 2: above it a coordinate is the larger of the two.
    uint256 private constant HALF_HIGH = 0x0d0088f51cbff34d258dd3db21a5d66b;
    uint256 private constant HALF_LOW =
        0xb23ba5c279c2895fb39869507b587b120f55ffff58a9ffffdcff7fffffffd555;

    bytes private constant DST = "BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_";

    /// @notice The negated generator of G2, padded as EIP-2537 wants it.
    bytes private negatedG2;
    /// @notice The network's public key in G2, padded likewise.
    bytes public publicKey;

    error BadPoint();
    error NotSignedByNetwork(uint64 round);
    error PrecompileFailed(uint256 precompile);
    error NoRound();

    /// @param key Public key, x0 x1 y0 y1 of 64 bytes each. @param negatedGenerator Of G2, likewise.
    constructor(bytes memory key, bytes memory negatedGenerator) {
        require(key.length == 256 && negatedGenerator.length == 256, BadPoint());
        publicKey = key;
        negatedG2 = negatedGenerator;
    }

    /// @notice Records a round; anyone may who has its signature.
    /// @param point The signature, uncompressed: x and y of 64 bytes each.
    function push(uint64 round, bytes calldata point) external returns (bytes32 randomness) {
        require(round > 0, NoRound());
        randomness = verify(round, point);
        keep(round, randomness);
    }

    /// @notice Checks a round's signature.
    /// @return The round's randomness as drand publishes it: SHA-256 of the compressed signature.
    function verify(uint64 round, bytes calldata point) public view returns (bytes32) {
        require(point.length == 128, BadPoint());
        bytes memory message = hashToCurve(sha256(abi.encodePacked(round)));
        // e(signature, -G2) * e(H(message), key) = 1; the precompile checks curve and subgroup.
        bytes memory out =
            precompile(0x0f, abi.encodePacked(point, negatedG2, message, publicKey), 32);
        require(uint256(bytes32(out)) == 1, NotSignedByNetwork(round));
        return sha256(compressed(point));
    }

    function current() external view returns (uint64 round, bytes32 seed_) {
        return (newest, kept(newest));
    }

    function seed(uint64 round) external view returns (bytes32) {
        return kept(round);
    }

    /// @notice RFC 9380 hash_to_curve of a 32-byte message, as a padded point of G1.
    function hashToCurve(bytes32 message) public view returns (bytes memory) {
        bytes memory dst = abi.encodePacked(DST, uint8(DST.length));
        bytes32 b0 =
            sha256(abi.encodePacked(new bytes(64), message, uint16(128), uint8(0), dst));
        bytes32 b1 = sha256(abi.encodePacked(b0, uint8(1), dst));
        bytes32 b2 = sha256(abi.encodePacked(b0 ^ b1, uint8(2), dst));
        bytes32 b3 = sha256(abi.encodePacked(b0 ^ b2, uint8(3), dst));
        bytes32 b4 = sha256(abi.encodePacked(b0 ^ b3, uint8(4), dst));
        bytes memory first = precompile(0x10, toField(b1, b2), 128);
        bytes memory second = precompile(0x10, toField(b3, b4), 128);
        return precompile(0x0b, abi.encodePacked(first, second), 128);
    }

    /// 64 bytes modulo p, padded to 64 bytes: base^1 mod p.
    function toField(bytes32 high, bytes32 low) private view returns (bytes memory) {
        bytes memory input = abi.encodePacked(
            uint256(64), uint256(1), uint256(48), high, low, uint8(1), uint128(P_HIGH), P_LOW
        );
        return abi.encodePacked(uint128(0), precompile(0x05, input, 48));
    }

    function compressed(bytes calldata point) private pure returns (bytes memory) {
        uint256 xHigh = uint256(bytes32(point[:32]));
        uint256 yHigh = uint256(bytes32(point[64:96]));
        bytes32 xLow = bytes32(point[32:64]);
        uint256 yLow = uint256(bytes32(point[96:128]));
        bool larger = yHigh > HALF_HIGH || (yHigh == HALF_HIGH && yLow > HALF_LOW);
        // The precompile has refused a coordinate that is not below p, so 128 bits are enough.
        uint256 flags = (1 << 127) | (larger ? uint256(1) << 125 : 0);
        return abi.encodePacked(uint128(xHigh | flags), xLow);
    }

    function precompile(uint256 which, bytes memory input, uint256 length)
        private
        view
        returns (bytes memory out)
    {
        bool ok;
        (ok, out) = address(uint160(which)).staticcall(input);
        require(ok && out.length == length, PrecompileFailed(which));
    }
}
