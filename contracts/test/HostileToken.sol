// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title A token of tests that misbehaves as it is told to.
contract HostileToken {
    /// @notice 0 honest, 1 takes a fee, 2 returns false, 3 returns nothing, 4 reverts, 5 returns 2,
    /// 6 returns much, 7 calls back, 8 uses up all gas, 9 returns false and pays all the same.
    uint8 public conduct;
    address private target;
    bytes private data;
    /// @notice How often what it called back went through.
    uint256 public reentered;

    mapping(address => uint256) public balanceOf;
    mapping(address => mapping(address => uint256)) public allowance;

    constructor(address holder, uint256 supply) {
        balanceOf[holder] = supply;
    }

    /// @param target_ Whom it calls back. @param data_ With what.
    function behave(uint8 conduct_, address target_, bytes calldata data_) external {
        (conduct, target, data) = (conduct_, target_, data_);
    }

    function approve(address spender, uint256 amount) external returns (bool) {
        allowance[msg.sender][spender] = amount;
        return true;
    }

    function transfer(address to, uint256 amount) external {
        move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        move(from, to, amount);
    }

    function move(address from, address to, uint256 amount) private {
        uint8 how = conduct;
        require(how != 4, "no");
        if (how == 8) while (true) {}
        if (how == 2) answer(0, 32);
        balanceOf[from] -= amount;
        balanceOf[to] += how == 1 ? amount - amount / 100 : amount;
        if (how == 7) {
            (bool done,) = target.call(data);
            if (done) reentered++;
        }
        if (how == 3) answer(0, 0);
        if (how == 9) answer(0, 32);
        answer(how == 5 ? 2 : 1, how == 6 ? 100_000 : 32);
    }

    function answer(uint256 word, uint256 length) private pure {
        assembly ("memory-safe") {
            mstore(0, word)
            return(0, length)
        }
    }
}
