// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IVerifier} from "./Interfaces.sol";
import {Merkle} from "./Merkle.sol";

/// @notice One segment of a SHA-256 chain: 1000 steps, each the hash of the state before it.
library HashChain {
    uint256 internal constant STEPS = 1000;

    function run(bytes32 state) internal view returns (bytes32) {
        assembly ("memory-safe") {
            mstore(0, state)
            for { let left := 1000 } left { left := sub(left, 1) } {
                if iszero(staticcall(gas(), 2, 0, 32, 0, 32)) { revert(0, 0) }
            }
            state := mload(0)
        }
        return state;
    }
}

/// @title A segment of a SHA-256 chain: `to` is `from` hashed 1000 times. The proof is empty.
contract HashSegment is IVerifier {
    function verify(bytes32 from, bytes32 to, bytes calldata) external view returns (bool) {
        return HashChain.run(from) == to;
    }
}

/// @title A leaf of an audit tree: `from` is the root, `to` the SHA-256 of the leaf's bytes.
contract MerkleLeaf is IVerifier {
    struct Proof {
        uint64 len;
        uint64 index;
        bytes leaf;
        bytes32[] path;
    }

    function verify(bytes32 from, bytes32 to, bytes calldata proof) external view returns (bool) {
        return this.check(from, to, abi.decode(proof, (Proof)));
    }

    function check(bytes32 root, bytes32 leafHash, Proof calldata it)
        external
        view
        returns (bool)
    {
        return sha256(it.leaf) == leafHash
            && Merkle.auditRoot(it.len, it.index, it.leaf, it.path) == root;
    }
}

/// @title A label of the layered filler graph (docs/chain.md, "Labels").
/// @notice `from` binds chain, registry, node, device, extent and salt; `to` is the label. Its four
/// parents are the label before it and three that that label draws: in the first layer from all
/// labels before, above from the layer below.
contract DagLabel is IVerifier {
    uint256 public constant LAYERS = 4;
    uint256 public constant DRAWN = 3;

    struct Proof {
        uint8 layer;
        uint64 index;
        uint64 count;
        bytes32 previous;
        bytes32[3] drawn;
    }

    error OutOfRange();

    function verify(bytes32 from, bytes32 to, bytes calldata proof) external pure returns (bool) {
        return label(from, abi.decode(proof, (Proof))) == to;
    }

    /// @notice The label that follows from its parents.
    function label(bytes32 context, Proof memory it) public pure returns (bytes32) {
        require(it.layer < LAYERS && it.index < it.count, OutOfRange());
        return sha256(
            abi.encodePacked(context, it.layer, it.index, it.previous, it.drawn[0], it.drawn[1], it.drawn[2])
        );
    }

    /// @notice Which labels a label's predecessor draws: the first in its own layer and nearby, the
    /// others in the layer below, or of the first layer in that.
    function parents(uint8 layer, uint64 index, uint64 count, bytes32 previous)
        external
        pure
        returns (uint64[3] memory places)
    {
        require(layer < LAYERS && index < count, OutOfRange());
        if (index > 1) {
            uint64 scale = 1 + uint64(uint256(previous)) % log2(index);
            uint64 distance =
                2 + (uint64(uint256(previous) >> 192) & ((uint64(1) << scale) - 1));
            places[0] = distance < index ? index - distance : 0;
        }
        uint64 bound = layer == 0 ? index : count;
        if (bound == 0) return places;
        for (uint256 i = 1; i < DRAWN; i++) {
            places[i] = uint64(uint256(previous) >> (192 - 64 * i)) % bound;
        }
    }

    /// Rounded down.
    function log2(uint64 number) private pure returns (uint64 result) {
        while (number > 1) {
            number >>= 1;
            result++;
        }
    }
}
