// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Eip712} from "./Eip712.sol";

/// @title The grid's token: ERC-20 with EIP-2612 permits.
/// @notice Nobody has a role in it but Rewards, which mints and caps what it mints. Transfers call
/// nobody, so a payment in it can be pushed.
contract GridToken is Eip712 {
    string public constant name = "Hypha Grid Token";
    string public constant symbol = "GRID";
    uint8 public constant decimals = 18;

    /// @notice Who may mint: the Rewards contract, fixed for good.
    address public immutable minter;

    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;
    mapping(address => uint256) public nonces;
    uint128 private supply;
    uint128 private mintedSoFar;

    bytes32 private constant PERMIT = keccak256(
        "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
    );

    event Transfer(address indexed from, address indexed to, uint256 value);
    event Approval(address indexed owner, address indexed spender, uint256 value);

    error InsufficientBalance(address account, uint256 has, uint256 needs);
    error InsufficientAllowance(address spender, uint256 has, uint256 needs);
    error NotMinter();
    error PermitExpired(uint256 deadline);
    error PermitNotBySigner(address signer);
    error ToNobody();
    error SupplyTooLarge();

    constructor(address minter_, address holder, uint128 genesisSupply) Eip712("Hypha Grid Token") {
        minter = minter_;
        supply = genesisSupply;
        balanceOf[holder] = genesisSupply;
        emit Transfer(address(0), holder, genesisSupply);
    }

    /// @notice All tokens that exist.
    function totalSupply() external view returns (uint256) {
        return supply;
    }

    /// @notice All tokens that were minted after the genesis supply, burned ones included.
    function totalMinted() external view returns (uint256) {
        return mintedSoFar;
    }

    function transfer(address to, uint256 amount) external returns (bool) {
        move(msg.sender, to, amount);
        return true;
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        emit Approval(msg.sender, spender, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        uint256 allowed = allowance[from][msg.sender];
        if (allowed != type(uint256).max) {
            require(allowed >= amount, InsufficientAllowance(msg.sender, allowed, amount));
            unchecked {
                allowance[from][msg.sender] = allowed - amount;
            }
        }
        move(from, to, amount);
        return true;
    }

    /// @notice EIP-2612: an approval by signature.
    function permit(
        address owner,
        address spender,
        uint256 value,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        require(block.timestamp <= deadline, PermitExpired(deadline));
        uint256 nonce = nonces[owner]++;
        bytes32 hash = keccak256(abi.encode(PERMIT, owner, spender, value, nonce, deadline));
        address signer = recoverParts(hash, v, r, s);
        require(signer == owner, PermitNotBySigner(signer));
        allowance[owner][spender] = value;
        emit Approval(owner, spender, value);
    }

    /// @notice Makes tokens (Rewards only).
    function mint(address to, uint256 amount) external returns (uint256 minted) {
        require(msg.sender == minter, NotMinter());
        require(to != address(0), ToNobody());
        uint256 newSupply = supply + amount;
        minted = mintedSoFar + amount;
        require(newSupply <= type(uint128).max && minted <= type(uint128).max, SupplyTooLarge());
        supply = uint128(newSupply);
        mintedSoFar = uint128(minted);
        unchecked {
            balanceOf[to] += amount;
        }
        emit Transfer(address(0), to, amount);
    }

    /// @notice Destroys tokens of the caller.
    function burn(uint256 amount) external {
        uint256 has = balanceOf[msg.sender];
        require(has >= amount, InsufficientBalance(msg.sender, has, amount));
        unchecked {
            balanceOf[msg.sender] = has - amount;
            supply -= uint128(amount);
        }
        emit Transfer(msg.sender, address(0), amount);
    }

    function move(address from, address to, uint256 amount) private {
        require(to != address(0), ToNobody());
        uint256 has = balanceOf[from];
        require(has >= amount, InsufficientBalance(from, has, amount));
        unchecked {
            balanceOf[from] = has - amount;
            // All balances together are the supply, which fits.
            balanceOf[to] += amount;
        }
        emit Transfer(from, to, amount);
    }
}
