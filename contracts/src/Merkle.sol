// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice The suite's trees (docs/chain.md, "Trees"). All have the shape of the audit tree: leaf
/// `0x00`, node `0x01`, root `0x02 | count`, a node without a sibling goes up as it is.
library Merkle {
    /// @notice The path has another length than the tree's shape demands, or the leaf is not in it.
    error BadPath();

    /// @notice The top that a keccak leaf hash leads to.
    /// @param hash The leaf's hash. @param index Its place. @param count Leaves of the tree.
    function keccakTop(bytes32 hash, uint256 index, uint256 count, bytes32[] calldata path)
        internal
        pure
        returns (bytes32)
    {
        require(index < count, BadPath());
        uint256 used;
        // A path that is too short reads what follows it, and is refused at the end.
        unchecked {
            while (count > 1) {
                if (index & 1 == 1) {
                    hash = keccakNode(sibling(path, used++), hash);
                } else if (index + 1 < count) {
                    hash = keccakNode(hash, sibling(path, used++));
                }
                index >>= 1;
                count = (count + 1) >> 1;
            }
        }
        require(used == path.length, BadPath());
        return hash;
    }

    /// @notice The same with SHA-256.
    function shaTop(bytes32 hash, uint256 index, uint256 count, bytes32[] calldata path)
        internal
        view
        returns (bytes32)
    {
        require(index < count, BadPath());
        uint256 used;
        // A path that is too short reads what follows it, and is refused at the end.
        unchecked {
            while (count > 1) {
                if (index & 1 == 1) {
                    hash = shaNode(sibling(path, used++), hash);
                } else if (index + 1 < count) {
                    hash = shaNode(hash, sibling(path, used++));
                }
                index >>= 1;
                count = (count + 1) >> 1;
            }
        }
        require(used == path.length, BadPath());
        return hash;
    }

    /// @notice The root of the SHA-256 audit tree of `len` bytes that a leaf of 1 KiB leads to.
    function auditRoot(uint64 len, uint64 index, bytes calldata leaf, bytes32[] calldata path)
        internal
        view
        returns (bytes32)
    {
        uint64 count = len == 0 ? 1 : (len - 1) / 1024 + 1;
        require(index < count, BadPath());
        uint64 start = index * 1024;
        require(leaf.length == (len - start < 1024 ? len - start : 1024), BadPath());
        bytes32 hash = sha256(abi.encodePacked(uint8(0), index, leaf));
        return sha256(abi.encodePacked(uint8(2), len, shaTop(hash, index, count, path)));
    }

    /// @notice The root of a keccak tree of `count` leaves.
    function keccakRoot(uint64 count, bytes32 top) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(2), count, top));
    }

    function sibling(bytes32[] calldata path, uint256 place) private pure returns (bytes32 word) {
        assembly ("memory-safe") {
            word := calldataload(add(path.offset, mul(place, 32)))
        }
    }

    function keccakNode(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, 1)
            mstore(add(free, 1), left)
            mstore(add(free, 33), right)
            hash := keccak256(free, 65)
        }
    }

    function shaNode(bytes32 left, bytes32 right) internal view returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore8(free, 1)
            mstore(add(free, 1), left)
            mstore(add(free, 33), right)
            if iszero(staticcall(gas(), 2, free, 65, 0, 32)) { revert(0, 0) }
            hash := mload(0)
        }
    }
}

/// @notice One extent of a node's disks.
struct Extent {
    /// 1 filler, 2 a user's shard.
    uint8 kind;
    /// Of filler: device * 2^32 + number of the extent. Of a shard: its reservation.
    uint64 id;
    uint64 bytesLen;
    /// Root of the audit tree over its bytes.
    bytes32 root;
}

/// @notice The way of an extent to the root of its plot, a Merkle sum tree.
struct ExtentPath {
    Extent extent;
    /// Bit `i`: whether the sibling of level `i` is on the left.
    uint256 sides;
    /// For each level, the sibling's sum (8 bytes, big-endian) and hash (32 bytes).
    bytes siblings;
}

/// @notice The Merkle sum tree over a node's extents.
library Plot {
    /// @notice The siblings are no multiple of 40 bytes, or more than 40 levels.
    error BadSumPath();

    /// @return root The plot's root that this path leads to.
    /// @return start Offset of the extent's first byte in the plot.
    function climb(ExtentPath calldata way)
        internal
        pure
        returns (bytes32 root, uint64 start, uint64 sum)
    {
        uint256 length = way.siblings.length;
        require(length % 40 == 0 && length <= 1600, BadSumPath());
        Extent calldata extent = way.extent;
        sum = extent.bytesLen;
        bytes32 hash =
            keccak256(abi.encodePacked(uint8(0), extent.kind, extent.id, sum, extent.root));
        uint256 sides = way.sides;
        for (uint256 done = 0; done < length; done += 40) {
            uint64 other = uint64(bytes8(way.siblings[done:done + 8]));
            bytes32 sibling = bytes32(way.siblings[done + 8:done + 40]);
            if (sides & 1 == 1) {
                hash = keccak256(abi.encodePacked(uint8(1), other, sibling, sum, hash));
                start += other;
            } else {
                hash = keccak256(abi.encodePacked(uint8(1), sum, hash, other, sibling));
            }
            sum += other;
            sides >>= 1;
        }
        root = keccak256(abi.encodePacked(uint8(2), sum, hash));
    }
}
