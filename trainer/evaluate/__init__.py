"""The judge (arrow: judge): is a committed checkpoint better than the one that serves?"""
