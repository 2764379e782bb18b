// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice EIP-712: each contract has a domain of its own, version "1".
abstract contract Eip712 {
    bytes32 private constant DOMAIN = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    /// secp256k1's order, halved: above it a signature is the mirror of another.
    uint256 private constant HALF_ORDER =
        0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    bytes32 private immutable nameHash;
    bytes32 private immutable separator;
    uint256 private immutable chainIdAtStart;

    /// @notice The signature is malformed, or its mirror image.
    error BadSignature();

    constructor(string memory name) {
        nameHash = keccak256(bytes(name));
        chainIdAtStart = block.chainid;
        separator = computeSeparator(keccak256(bytes(name)));
    }

    /// @notice The domain's hash. A fork of the chain with another id has another one.
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return block.chainid == chainIdAtStart ? separator : computeSeparator(nameHash);
    }

    function computeSeparator(bytes32 name) private view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN, name, keccak256("1"), block.chainid, address(this)));
    }

    function digestOf(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), structHash));
    }

    /// @param signature r, s, v: 65 bytes.
    function recover(bytes32 structHash, bytes calldata signature)
        internal
        view
        returns (address signer)
    {
        require(signature.length == 65, BadSignature());
        bytes32 s = bytes32(signature[32:64]);
        signer = recoverParts(structHash, uint8(signature[64]), bytes32(signature[:32]), s);
    }

    function recoverParts(bytes32 structHash, uint8 v, bytes32 r, bytes32 s)
        internal
        view
        returns (address signer)
    {
        require(uint256(s) <= HALF_ORDER, BadSignature());
        signer = ecrecover(digestOf(structHash), v, r, s);
        require(signer != address(0), BadSignature());
    }
}
