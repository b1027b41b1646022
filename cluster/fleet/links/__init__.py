"""Links between all pairs of a fleet's hosts: which ports are reached, round trips, bytes per second.

survey.py     the side that asks: a conversation with every host by ssh, pairs in rounds
tournament.py which pairs have their turn together
agent.py      the other end of a conversation: does what it is told on its host
listening.py  ports of a host that answer for the time of a survey;  greeting.py  whom they answer
measuring.py  connects to them
portlist.py   ports of the fleet file, as numbers and as people write them
judge.py      what the figures mean, and what to do about it;  reached.py  the same of ports
"""
